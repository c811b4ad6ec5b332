// SPDX-License-Identifier: Apache-2.0
/** The pages that are to be copied and pasted: their blocks, run as one shell session each, as they stand. */

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { chmodSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { requireGuest, requireQemu } from '../e2e/harness/require-qemu.js';
import { socketFolder, type Test } from '../support/served.js';
import { codeBlocks, readPages, repositoryRoot } from './pages.js';

/** A folder with what `npm link` would put on the PATH, and an `npm` that has done all there is to do. */
function programs(t: Test): string {
  const folder = socketFolder(t);
  const add = (name: string, script: string): void => {
    writeFileSync(join(folder, name), `#!/bin/sh\n${script}\n`);
    chmodSync(join(folder, name), 0o755);
  };
  add('devstate', `exec '${process.execPath}' '${repositoryRoot}/dist/src/cli/main.js' "$@"`);
  add('npm', 'exit 0');
  return folder;
}

/** Runs a page's blocks; ends at the first command that fails. All it has started ends with it. */
async function runPage(t: Test, path: string): Promise<{ code: number | null; output: string }> {
  const text = readPages().find((page) => page.path === path)?.text ?? '';
  const script = codeBlocks(text, 'sh').join('\n');
  const temporary = socketFolder(t);
  const shell = spawn('bash', ['-eu', '-c', script], {
    cwd: repositoryRoot,
    env: {
      ...process.env,
      PATH: `${programs(t)}:${process.env.PATH}`,
      DEVSTATE_HOME: repositoryRoot,
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

t.test('docs/write-a-device.md', async (t) => {
  const { code, output } = await runPage(t, 'docs/write-a-device.md');
  t.equal(code, 0, output);
  t.match(output, /Model: +example\.org\/adder.*Status: +intact and complete.*loaded/s);
});

t.test('docs/formats.md', async (t) => {
  const { code, output } = await runPage(t, 'docs/formats.md');
  t.equal(code, 0, output);
  t.match(output, /Format: +org\.example\.adder 1\.0.*no difference.*board = "A-7"/s);
});

t.test('docs/inspect.md', async (t) => {
  const { code, output } = await runPage(t, 'docs/inspect.md');
  t.equal(code, 0, output);
  t.match(output, /lost: the health counters.*4 differences, compared as org\.devstate\.nvme\.alder 1\.0/s);
  t.match(output, /Opaque: +343 B of virtio-vfio.*Compatible: +yes.*dbus-vmstate\.disk0\.bin/s);
});

t.test('docs/migrate.md', async (t) => {
  if ((await requireQemu(t)) === undefined || (await requireGuest(t)) === undefined) return;
  const { code, output } = await runPage(t, 'docs/migrate.md');
  t.equal(code, 0, output);
  t.match(output, /Status: +completed, running at the destination/);
  t.match(output, /devstateMs: [\d.]+/);
  t.notMatch(output, /LOST|FAILED/);
});
