// SPDX-License-Identifier: Apache-2.0
/** Runs the blocks of a page that is to be copied and pasted, as they stand. */

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { chmodSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { PACKAGE_ROOT } from '../../src/package-root.js';
import { MAIN } from '../support/main.js';
import { socketFolder, type Test } from '../support/served.js';
import { codeBlocks, readPages } from './pages.js';

/** A folder with what `npm link` would put on the PATH, and an `npm` that has done all there is to do. */
function programs(t: Test): string {
  const folder = socketFolder(t);
  const add = (name: string, script: string): void => {
    writeFileSync(join(folder, name), `#!/bin/sh\n${script}\n`);
    chmodSync(join(folder, name), 0o755);
  };
  add('devstate', `exec '${process.execPath}' '${MAIN}' "$@"`);
  add('npm', 'exit 0');
  return folder;
}

/** Runs a page's blocks; ends at the first command that fails. All it has started ends with it. */
export async function runPage(t: Test, path: string): Promise<{ code: number | null; output: string }> {
  const text = readPages().find((page) => page.path === path)?.text ?? '';
  const script = codeBlocks(text, 'sh').join('\n');
  const temporary = socketFolder(t);
  const shell = spawn('bash', ['-eu', '-c', script], {
    cwd: PACKAGE_ROOT,
    env: {
      ...process.env,
      PATH: `${programs(t)}:${process.env.PATH}`,
      DEVSTATE_HOME: PACKAGE_ROOT,
      TMPDIR: temporary,
    },
    stdio: ['ignore', 'pipe', 'pipe'],
    // A group of its own, so that nothing is left behind.
    detached: true,
  });
  let output = '';
  for (const stream of [shell.stdout, shell.stderr])
    stream.setEncoding('utf8').on('data', (data: string) => {
      output += data;
    });
  t.teardown(() => {
    try {
      if (shell.pid !== undefined) process.kill(-shell.pid, 'SIGKILL');
    } catch {
      // Nothing is left.
    }
  });
  const [code] = (await once(shell, 'exit')) as [number | null];
  return { code, output };
}
