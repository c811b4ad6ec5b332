// SPDX-License-Identifier: Apache-2.0
/** An errno in words: also those for which libuv has no name. */

import { readFileSync } from 'node:fs';
import t from 'tap';
import { errnoText, whySystem } from '../../src/native/index.js';

t.test('an errno in words, with its name', (t) => {
  t.equal(errnoText(28), 'the file system is full; free space on it (ENOSPC)');
  t.equal(errnoText(-28), errnoText(28));
  for (const [errno, name] of [
    [122, 'EDQUOT'],
    [116, 'ESTALE'],
    [117, 'EUCLEAN'],
    [123, 'ENOMEDIUM'],
    [126, 'ENOKEY'],
    [74, 'EBADMSG'],
    [67, 'ENOLINK'],
    [121, 'EREMOTEIO'],
  ] as const)
    t.match(errnoText(errno), new RegExp(`^\\w.* \\(${name}\\)$`));
  t.equal(errnoText(22), 'EINVAL', 'for what says enough itself, its name');
  t.equal(errnoText(4000), 'errno 4000');
  t.equal(errnoText(0), 'errno 0');
  t.end();
});

t.test('why a system call failed', (t) => {
  const quota = { errno: -122, code: 'Unknown system error -122', syscall: 'write' };
  t.match(whySystem(Object.assign(new Error('Unknown system error -122, write'), quota)), /\(EDQUOT\)$/);
  try {
    readFileSync('/nowhere');
  } catch (error) {
    t.match(whySystem(error), /\(ENOENT\)$/);
  }
  // An errno of zlib's, which counts otherwise.
  const zlib = { errno: -3, code: 'Z_DATA_ERROR' };
  t.equal(whySystem(Object.assign(new Error('incorrect header check'), zlib)), 'incorrect header check');
  t.end();
});
