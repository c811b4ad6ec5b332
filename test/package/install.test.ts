// SPDX-License-Identifier: Apache-2.0
/** The package that `npm pack` makes: what is in it, installed in an empty prefix, with and without compiler and prebuild. */

import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import {
  cpSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  realpathSync,
  rmSync,
  statSync,
  symlinkSync,
} from 'node:fs';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import t from 'tap';
import { packageRoot } from '../support/package-root.js';
import { socketFolder, until } from '../support/served.js';

const PLATFORM = `${process.platform}-${process.arch}`;
/** Oldest glibc that the prebuilt addon runs with; docs/dependencies.md says so. */
const OLDEST_GLIBC = [2, 34];

function run(
  command: string,
  args: string[],
  options: { cwd?: string; env?: NodeJS.ProcessEnv } = {},
): string {
  const { status, stdout, stderr, error } = spawnSync(command, args, { encoding: 'utf8', ...options });
  if (status !== 0) throw new Error(`${command} ${args.join(' ')}: ${error?.message ?? stdout + stderr}`);
  return stdout;
}

// It compiles the addon several times.
t.setTimeout(300_000);

t.test('the packed package', async (t) => {
  const folder = socketFolder(t);
  // What prepack does, but for the build that is there already.
  run(process.execPath, ['tools/prebuild.mjs'], { cwd: packageRoot });
  const packed = JSON.parse(
    run('npm', ['pack', '--json', '--ignore-scripts', '--pack-destination', folder], { cwd: packageRoot }),
  ) as [{ filename: string; version: string; files: { path: string; mode: number }[] }];
  const [{ filename, version, files }] = packed;
  const paths = new Set(files.map(({ path }) => path));

  t.test('has what is needed, and nothing else', async (t) => {
    const manifest = JSON.parse(readFileSync(join(packageRoot, 'package.json'), 'utf8')) as {
      version: string;
      scripts: Record<string, string>;
      exports: Record<string, string>;
    };
    t.equal(version, manifest.version);
    for (const name of ['preinstall', 'install', 'postinstall', 'prepare'])
      t.notOk(name in manifest.scripts, name);
    const needed = ['README.md', 'LICENSE', 'formats/registry.json', 'formats/nvme.proto', 'docs/migrate.md'];
    for (const path of [...needed, 'native/src/addon.cc', 'native/include/node_api.h', 'examples/adder.ts'])
      t.ok(paths.has(path), path);
    for (const path of Object.values(manifest.exports)) t.ok(paths.has(path.slice(2)), path);
    t.ok(paths.has(`native/prebuilds/${PLATFORM}/devstate.node`));
    const strange = [...paths].filter((path) =>
      /(^|\/)(test|bench|tools|build|built|node_modules)\//.test(path),
    );
    t.same(strange, []);
    const bin = files.find(({ path }) => path === 'dist/src/cli/main.js');
    t.equal((bin?.mode ?? 0) & 0o111, 0o111, 'the command can be executed');
  });

  // As npm lays a global installation out; the dependencies are those of the lock file, which are here already.
  const prefix = join(folder, 'prefix');
  const installed = join(prefix, 'lib/node_modules/devstate');
  mkdirSync(installed, { recursive: true });
  run('tar', ['-xzf', join(folder, filename), '--strip-components=1', '-C', installed]);
  const lock = JSON.parse(readFileSync(join(packageRoot, 'package-lock.json'), 'utf8')) as {
    packages: Record<string, { dev?: boolean; optional?: boolean }>;
  };
  for (const [path, { dev, optional }] of Object.entries(lock.packages)) {
    if (path === '' || dev === true || (optional === true && !existsSync(join(packageRoot, path)))) continue;
    cpSync(join(packageRoot, path), join(installed, path), { recursive: true });
  }
  const command = join(prefix, 'bin/devstate');
  mkdirSync(join(prefix, 'bin'));
  symlinkSync('../lib/node_modules/devstate/dist/src/cli/main.js', command);

  /** A PATH that has Node.js and no compiler. */
  const bare = join(folder, 'bare');
  mkdirSync(bare);
  symlinkSync(realpathSync(process.execPath), join(bare, 'node'));
  symlinkSync('/usr/bin/env', join(bare, 'env'));
  const environment = (path: string): NodeJS.ProcessEnv => ({
    HOME: join(folder, 'home'),
    PATH: path,
  });

  async function works(env: NodeJS.ProcessEnv): Promise<void> {
    const work = join(folder, `work-${Math.random()}`);
    mkdirSync(work);
    const [socket, manager] = [join(work, 's'), join(work, 'm')];
    const args = ['serve', 'nvme', '--socket', socket, '--migration-socket', manager];
    const server = spawn(command, [...args, '--image', join(work, 'image'), '--size', '1M'], {
      env,
      stdio: ['ignore', 'ignore', 'pipe'],
    });
    let said = '';
    server.stderr.on('data', (data) => {
      said += data;
    });
    const ended = once(server, 'exit');
    try {
      await until(async () => {
        await delay(20);
        return existsSync(manager) || server.exitCode !== null;
      });
      if (server.exitCode !== null) throw new Error(said);
      run(command, ['save', '--migration-socket', manager, '-o', join(work, 'blob')], { env });
      const shown = JSON.parse(
        run(command, ['inspect', '-o', 'json', join(work, 'blob')], { env }),
      ) as object;
      t.match(JSON.stringify(shown), /org\.devstate\.nvme/);
    } finally {
      server.kill('SIGTERM');
      await ended;
    }
  }

  t.test('runs with its prebuilt addon, without a compiler', async () => works(environment(bare)));

  t.test('the prebuilt addon needs no newer glibc than is said, and no libstdc++', async (t) => {
    const addon = join(installed, 'native/prebuilds', PLATFORM, 'devstate.node');
    const symbols = run('readelf', ['--dyn-syms', '--wide', addon]);
    const versions = [...symbols.matchAll(/GLIBC_(\d+)\.(\d+)/g)].map(([, a, b]) => [Number(a), Number(b)]);
    const newer = versions.filter(([a, b]) => a! > OLDEST_GLIBC[0]! || b! > OLDEST_GLIBC[1]!);
    t.ok(versions.length > 0);
    t.same(newer, []);
    t.notMatch(run('readelf', ['-d', addon]), /libstdc\+\+/);
  });

  t.test('without prebuild', async (t) => {
    rmSync(join(installed, 'native/prebuilds'), { recursive: true });

    t.test('nor compiler, says what is missing', async (t) => {
      const args = ['serve', 'sample', '--socket', join(folder, 'none')];
      const { status, stderr } = spawnSync(command, args, { env: environment(bare), encoding: 'utf8' });
      t.equal(status, 1);
      t.match(stderr, /DEVSTATE_E_ADDON/);
      t.match(stderr, /no C\+\+ compiler .*install one/s);
    });

    t.test('builds one, several processes at once', async (t) => {
      const env = environment(process.env.PATH ?? '');
      await Promise.all([works(env), works(env)]);
      const built = join(installed, 'native/built');
      const [name] = readdirSync(built);
      t.same(readdirSync(join(built, name!)), ['devstate.node'], 'and nothing is left behind');
      const { mtimeMs } = statSync(join(built, name!, 'devstate.node'));
      await works(environment(bare));
      t.equal(statSync(join(built, name!, 'devstate.node')).mtimeMs, mtimeMs, 'it is not built again');
    });
  });

  t.test('an addon of another machine is named, and one is built', async (t) => {
    rmSync(join(installed, 'native/built'), { recursive: true });
    mkdirSync(join(installed, 'native/prebuilds', PLATFORM), { recursive: true });
    cpSync('/usr/bin/env', join(installed, 'native/prebuilds', PLATFORM, 'devstate.node'));
    const args = ['serve', 'sample', '--socket', join(folder, 'none')];
    const { status, stderr } = spawnSync(command, args, { env: environment(bare), encoding: 'utf8' });
    t.equal(status, 1);
    t.match(stderr, /does not load on linux-.* with .*no C\+\+ compiler/s);
    await works(environment(process.env.PATH ?? ''));
  });
});
