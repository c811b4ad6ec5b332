// SPDX-License-Identifier: Apache-2.0
/**
 * What MessageSocket costs against plain C: the same C client against a C server and against
 * `baseline/message-socket-server`, run in turn so that noise meets both, and the medians compared.
 *
 * `node dist/tools/bench/transport.js [ROUNDS]`
 */

import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { PACKAGE_ROOT } from '../../src/package-root.js';

const run = promisify(execFile);
const here = dirname(fileURLToPath(import.meta.url));
const sources = join(PACKAGE_ROOT, 'tools/bench/baseline');

const CHUNK = 1 << 20;
const STATE_BYTES = 1 << 30;
const TESTS = {
  'region-read': { args: ['region-read', '20000'], field: 'p50' },
  'mig-read': { args: ['mig-read', String(STATE_BYTES), String(CHUNK)], field: 'bytesPerSecond' },
  'mig-write': { args: ['mig-write', String(STATE_BYTES), String(CHUNK)], field: 'bytesPerSecond' },
} as const;

function median(values: number[]): number {
  return values.sort((a, b) => a - b)[values.length >> 1]!;
}

async function main(): Promise<void> {
  const rounds = Number(process.argv[2] ?? 7);
  const folder = mkdtempSync(join(tmpdir(), 'devstate-bench-'));
  const build = (name: string) => run('cc', ['-O2', '-o', join(folder, name), join(sources, `${name}.c`)]);
  await Promise.all([build('server'), build('client')]);
  const servers = {
    c: [join(folder, 'server')],
    node: [process.execPath, join(here, 'baseline', 'message-socket-server.js')],
  } as const;
  const children = [];
  for (const [name, [command, ...args]] of Object.entries(servers)) {
    const child = spawn(command, [...args, join(folder, name), String(STATE_BYTES)], {
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    children.push(child);
    await once(child.stdout, 'data');
  }
  try {
    for (const [test, { args, field }] of Object.entries(TESTS)) {
      const results: Record<string, number[]> = { c: [], node: [] };
      for (let round = 0; round < rounds; round++) {
        for (const [name, values] of Object.entries(results)) {
          const { stdout } = await run(join(folder, 'client'), [join(folder, name), ...args]);
          values.push((JSON.parse(stdout) as Record<string, number>)[field]!);
        }
      }
      const c = median(results.c!);
      const node = median(results.node!);
      process.stdout.write(
        `${JSON.stringify({ test, field, c, node, ratio: Number((node / c).toFixed(3)) })}\n`,
      );
    }
  } finally {
    for (const child of children) child.kill();
    rmSync(folder, { recursive: true });
  }
}

await main();
