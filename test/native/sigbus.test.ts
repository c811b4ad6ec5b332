// SPDX-License-Identifier: Apache-2.0
/** A SIGBUS that is none of our business still ends the process. */

import { spawnSync } from 'node:child_process';
import t from 'tap';

const addon = new URL('../../src/native/index.js', import.meta.url).href;

/** Runs `script` with the addon as `native`, after a mapping installed the handler; how the process ended. */
function outcome(script: string): { status: number | null; signal: string | null; stderr: string } {
  const program = `import { native } from ${JSON.stringify(addon)};
    const fd = native.memfdCreate('sigbus');
    native.truncate(fd, 4096);
    const mapping = native.map(fd, 0, 4096, 3);
    const bytes = new Uint8Array(mapping.window(0, 4096));
    ${script}`;
  const options = { encoding: 'utf8' } as const;
  const { status, signal, stderr } = spawnSync(
    process.execPath,
    ['--input-type=module', '-e', program],
    options,
  );
  return { status, signal, stderr };
}

t.test('a signal that is sent ends the process', async (t) => {
  t.equal(outcome("process.kill(process.pid, 'SIGBUS'); setInterval(() => {}, 1000);").signal, 'SIGBUS');
});

t.test('a fault in a guarded mapping does not', async (t) => {
  const { status, stderr } = outcome(
    'native.truncate(fd, 0); process.exit(bytes[5] === 0 && mapping.faulted ? 0 : 1);',
  );
  t.equal(status, 0, stderr);
});

t.test('a worker that ends with mappings and pollers leaves the process whole', async (t) => {
  const worker = `import { native } from ${JSON.stringify(addon)};
    const pair = new Int32Array(2);
    native.socketPair(pair);
    for (const fd of pair) native.createPoller(fd, () => {}).start(1);
    const fd = native.memfdCreate('worker');
    native.truncate(fd, 4096);
    globalThis.kept = native.map(fd, 0, 4096, 3).window(0, 4096);
    process.exit(3);`;
  const { status, stderr } = outcome(`
    const { Worker } = await import('node:worker_threads');
    const url = new URL('data:text/javascript,' + encodeURIComponent(${JSON.stringify(worker)}));
    const codes = [];
    for (let i = 0; i < 5; i++) {
      codes.push(await new Promise((resolve) => new Worker(url).on('exit', resolve)));
    }
    process.exit(codes.every((code) => code === 3) ? 0 : 1);`);
  t.equal(status, 0, stderr);
});
