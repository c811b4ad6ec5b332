// SPDX-License-Identifier: Apache-2.0
/** A QEMU for use in a guest: the program, its libraries and the firmware of a PC, as an archive for an initramfs. */
import { createHash } from 'node:crypto';
import { existsSync } from 'node:fs';
import { readFile, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { cached } from '../../../tools/qemu/cache.js';
import type { QemuInstallation } from '../../../tools/qemu/provision.js';
import { run } from '../../../tools/qemu/run.js';
import { cpioArchive, directoryEntry, programEntry } from './initramfs.js';

/** A changed layout needs a new name. */
const ENTRY = 'qemu-archive-1';

/** Folder of the guest; the script `run` in it starts QEMU. */
const FOLDER = 'qemu';
const FIRMWARE = ['bios-256k.bin', 'kvmvapic.bin'];
const RUN = `#!/bin/busybox sh
exec /${FOLDER}/loader --library-path /${FOLDER}/lib /${FOLDER}/program -L /${FOLDER}/share "$@"
`;

/** Path of the archive, in the cache. */
export async function qemuArchive(qemu: QemuInstallation): Promise<string> {
  const at = qemu.command.findIndex((word) => /qemu-system-[^/]+$/.test(word));
  const [named = '', before] = [qemu.command[at], qemu.command.slice(0, at)];
  const program = named.includes('/') ? named : (await run('sh', ['-c', `command -v ${named}`])).trim();
  const { size, mtimeMs } = await stat(program);
  const hash = createHash('sha256').update(`${program} ${size} ${mtimeMs}`).digest('hex').slice(0, 16);
  const entry = await cached(`${ENTRY}-${hash}`, async (target) => {
    // A QEMU that was unpacked is started through its own loader, which tells what `ldd` would.
    const [loader, ...options] = before;
    const linked =
      loader === undefined ? await run('ldd', [program]) : await run(loader, [...options, '--list', program]);
    const libraries = [...linked.matchAll(/(\S+) => (\/\S+) \(0x/gm)].map(([, name, path]) => [name!, path!]);
    const interpreter = loader ?? /^\s*(\/\S+ld-linux\S+) \(0x/m.exec(linked)?.[1] ?? '';
    const folders = (await run(qemu.command[0]!, [...qemu.command.slice(1), '-L', 'help'])).split('\n');
    const firmware = FIRMWARE.map((name): [string, string] => {
      const found = folders.map((folder) => join(folder, name)).find((path) => existsSync(path));
      if (found === undefined) throw new Error(`no ${name} in ${folders.join(', ')}`);
      return [name, found];
    });
    const files = [
      ['loader', interpreter],
      ['program', program],
      ...libraries.map(([name, path]) => [`lib/${name}`, path]),
      ...firmware.map(([name, path]) => [`share/${name}`, path]),
    ] as const;
    const archive = cpioArchive([
      ...[FOLDER, `${FOLDER}/lib`, `${FOLDER}/share`].map(directoryEntry),
      programEntry(`${FOLDER}/run`, Buffer.from(RUN)),
      ...(await Promise.all(
        files.map(async ([name, path]) => programEntry(`${FOLDER}/${name}`, await readFile(path!))),
      )),
    ]);
    await writeFile(join(target, 'qemu.cpio'), archive);
  });
  return join(entry, 'qemu.cpio');
}
