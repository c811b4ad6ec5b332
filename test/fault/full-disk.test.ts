// SPDX-License-Identifier: Apache-2.0
/** The file system of an image is full while a guest writes: it gets errors, the log says why, and it continues when there is room. */
import { execFileSync } from 'node:child_process';
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { MigrationLab } from '../e2e/harness/lab.js';

t.setTimeout(900_000);

/** Bytes of the file system: less than the guest writes, and then enough. */
const SMALL = 'size=2m';
const LARGE = 'size=64m';
/** What the guest writes: positions, and writes under way. */
const BLOCKS = 1024;
const DEPTH = 8;

const skip = process.getuid?.() === 0 ? false : 'only root may mount a file system';
t.test('a file system that is full', { skip }, async (t) => {
  const lab = await MigrationLab.create(t, { blocks: BLOCKS, depth: DEPTH });
  if (lab === undefined) return;
  const folder = join(lab.directory, 'full');
  mkdirSync(folder);
  execFileSync('mount', ['-t', 'tmpfs', '-o', SMALL, 'tmpfs', folder]);
  // Lazily: the server has the image open until the lab has ended.
  t.teardown(() => execFileSync('umount', ['-l', folder]));
  const server = await lab.serve('a', { image: join(folder, 'disk.img'), args: ['--size', '16M'] });
  const vm = await lab.startVm({ server });
  await server.process.saysOnStderr(/the file system is full; free space on it \(ENOSPC\)/);
  await vm.console.waitFor(/^EIO write /);
  t.pass('the guest is told, and so is whoever reads the log');
  await lab.guestWrites(vm);
  const told = server.process.stderr.split('\n').filter((line) => line.includes('ENOSPC'));
  t.ok(told.length <= 10, `${told.length} lines tell of it, for hundreds of writes`);

  execFileSync('mount', ['-o', `remount,${LARGE}`, folder]);
  // Every position once more, so that no old failure is left to be read. One block is read back in each round.
  const tick = async (after: number): Promise<{ sequence: number; verified: number }> => {
    for (;;) {
      const { match } = await vm.console.waitFor(/^tick (\d+) (\d+)/, { from: vm.console.lines.length });
      const [sequence, verified] = match.slice(1).map(Number) as [number, number];
      if (sequence >= after) return { sequence, verified };
    }
  };
  const first = await tick((await tick(0)).sequence + 2 * BLOCKS);
  const last = await tick(first.sequence + BLOCKS);
  t.equal(last.verified - first.verified, (last.sequence - first.sequence) / DEPTH, 'all is read back');
});
