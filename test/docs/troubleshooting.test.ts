// SPDX-License-Identifier: Apache-2.0
/** `docs/troubleshooting.md` has every error code, with the exit code that it has. */

import { readFileSync } from 'node:fs';
import t from 'tap';
import { ERROR_CODES, ExitCode } from '../../src/errors.js';
import { PACKAGE_ROOT } from '../../src/package-root.js';

const page = readFileSync(`${PACKAGE_ROOT}/docs/troubleshooting.md`, 'utf8');

t.test('codes', async (t) => {
  const sections = page.split(/^### /m).slice(1);
  const documented = sections.map((section) => section.split('\n', 1)[0] ?? '');
  t.same(documented, [...documented].sort(), 'the headings are in order');
  t.same(documented, Object.keys(ERROR_CODES).sort(), 'they are the codes');
  const exitCodes = sections.map((section) => {
    const exitCode = /^Exit code (\d)\. \S/m.exec(section)?.[1];
    return [section.split('\n', 1)[0], Number(exitCode)];
  });
  t.same(Object.fromEntries(exitCodes), ERROR_CODES);
  for (const section of sections) t.match(section, /^- \S/m, 'each says what to do');
});

t.test('exit codes', async (t) => {
  const rows = [...page.matchAll(/^\| +(\d) \| ([a-z ]+?) +\|/gm)].map((match) => Number(match[1]));
  t.same(rows, Object.values(ExitCode));
});
