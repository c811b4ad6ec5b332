// SPDX-License-Identifier: Apache-2.0
/**
 * The package that `npm pack` makes of a clone: what is in it, installed by npm in an empty prefix, with and without
 * compiler and prebuild. The registry's packages come from npm's cache if they are there.
 */

import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import {
  chmodSync,
  chownSync,
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
import { delimiter, dirname, join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import t from 'tap';
import { PACKAGE_ROOT } from '../../src/package-root.js';
import { socketFolder, until } from '../support/served.js';

const PLATFORM = `${process.platform}-${process.arch}`;
/** Oldest glibc that the prebuilt addon runs with; docs/dependencies.md says so. */
const OLDEST_GLIBC = [2, 34];
/** Programs that every user may run. */
const SYSTEM_PATH = [dirname(realpathSync(process.execPath)), '/usr/local/bin', '/usr/bin', '/bin'].join(
  delimiter,
);

const ENV = '/usr/bin/env';

/** Somebody who uses the package. */
interface User {
  readonly env: NodeJS.ProcessEnv;
  /** Only root may choose. */
  readonly uid?: number;
  readonly gid?: number;
}

function run(
  command: string,
  args: string[],
  options: { cwd?: string; env?: NodeJS.ProcessEnv; uid?: number; gid?: number } = {},
): string {
  const { status, stdout, stderr, error } = spawnSync(command, args, { encoding: 'utf8', ...options });
  if (status !== 0) throw new Error(`${command} ${args.join(' ')}: ${error?.message ?? stdout + stderr}`);
  return stdout;
}

/** A command line that somebody else runs: without what the test runner has its processes load, which writes where this user may not. */
function commandOf({ env }: User, ...command: string[]): string[] {
  return ['-i', ...Object.entries(env).map(([name, value]) => `${name}=${value}`), ...command];
}

/**
 * The working tree's files as a clone would have them, and the compiled ones, which take long to make again. The packages of
 * npm are links, one each: what npm may remove are the links. That `npm ci` takes the lock file has a test of its own.
 */
function cloneInto(folder: string): void {
  const args = ['ls-files', '-z', '--cached', '--others', '--exclude-standard'];
  for (const path of run('git', args, { cwd: PACKAGE_ROOT }).split('\0'))
    if (path !== '' && existsSync(join(PACKAGE_ROOT, path)))
      cpSync(join(PACKAGE_ROOT, path), join(folder, path), { recursive: true });
  cpSync(join(PACKAGE_ROOT, 'dist'), join(folder, 'dist'), { recursive: true });
  const packages = join(PACKAGE_ROOT, 'node_modules');
  mkdirSync(join(folder, 'node_modules'));
  for (const name of readdirSync(packages))
    symlinkSync(join(packages, name), join(folder, 'node_modules', name));
}

/** A program of this name in PATH, where it really is. */
function programNamed(name: string): string {
  const folders = (process.env.PATH ?? '').split(delimiter);
  const found = folders.map((folder) => join(folder, name)).find((path) => existsSync(path));
  if (found === undefined) throw new Error(`there is no ${name} in PATH`);
  return realpathSync(found);
}

// It compiles the addon several times.
t.setTimeout(900_000);

t.test('the packed package', async (t) => {
  const folder = socketFolder(t);
  // Others are to use what is in it.
  chmodSync(folder, 0o755);
  const clone = join(folder, 'clone');
  cloneInto(clone);
  run('npm', ['pack', '--loglevel=error', '--pack-destination', folder], { cwd: clone });
  const manifest = JSON.parse(readFileSync(join(PACKAGE_ROOT, 'package.json'), 'utf8')) as {
    version: string;
    scripts: Record<string, string>;
    exports: Record<string, string>;
    dependencies: Record<string, string>;
  };
  const tarball = join(folder, `devstate-${manifest.version}.tgz`);

  /** A PATH that has Node.js and no compiler. */
  const bare = join(folder, 'bare');
  mkdirSync(bare);
  symlinkSync(realpathSync(process.execPath), join(bare, 'node'));
  symlinkSync(ENV, join(bare, 'env'));
  const home = join(folder, 'home');
  const userWith = (path: string): User => ({ env: { HOME: home, PATH: path } });

  const prefix = join(folder, 'prefix');
  const cache = run('npm', ['config', 'get', 'cache']).trim();
  run(
    process.execPath,
    [
      ...[
        programNamed('npm'),
        'install',
        '-g',
        '--prefix',
        prefix,
        tarball,
        '--cache',
        cache,
        '--prefer-offline',
      ],
      ...['--no-audit', '--no-fund', '--loglevel=error'],
    ],
    { cwd: folder, env: { ...process.env, PATH: bare } },
  );
  const installed = join(prefix, 'lib/node_modules/devstate');
  const command = join(prefix, 'bin/devstate');

  t.test('has what is needed, and nothing else', async (t) => {
    const files = (readdirSync(installed, { recursive: true }) as string[]).filter(
      (path) => !path.startsWith('node_modules'),
    );
    const paths = new Set(files);
    for (const name of ['preinstall', 'install', 'postinstall', 'prepare'])
      t.notOk(name in manifest.scripts, name);
    const needed = ['README.md', 'LICENSE', 'formats/registry.json', 'formats/nvme.proto', 'docs/migrate.md'];
    for (const path of [
      ...needed,
      'native/src/addon.cc',
      'native/include/node_api.h',
      'docs/examples/adder.ts',
    ])
      t.ok(paths.has(path), path);
    for (const path of Object.values(manifest.exports)) t.ok(paths.has(path.slice(2)), path);
    t.ok(paths.has(`native/prebuilds/${PLATFORM}/devstate.node`));
    const strange = [...paths].filter((path) =>
      /(^|\/)(test|bench|tools|build|built|node_modules)\//.test(path),
    );
    t.same(strange, []);
    t.equal(realpathSync(command), join(realpathSync(installed), 'dist/bin/devstate.cjs'));
    t.equal(statSync(command).mode & 0o111, 0o111, 'the command can be executed');
    for (const name of Object.keys(manifest.dependencies))
      t.ok(existsSync(join(installed, 'node_modules', name, 'package.json')), name);
  });

  let users = 0;
  /** The user serves, saves and inspects. */
  async function works(user: User): Promise<void> {
    const work = join(folder, `work-${users++}`);
    mkdirSync(work);
    if (user.uid !== undefined) chownSync(work, user.uid, user.gid ?? user.uid);
    const [socket, manager] = [join(work, 's'), join(work, 'm')];
    const args = ['serve', 'nvme', '--socket', socket, '--migration-socket', manager];
    const serve = commandOf(user, command, ...args, '--image', join(work, 'image'), '--size', '1M');
    const server = spawn(ENV, serve, { ...user, stdio: ['ignore', 'ignore', 'pipe'] });
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
      const blob = join(work, 'blob');
      run(ENV, commandOf(user, command, 'save', '--migration-socket', manager, '-o', blob), user);
      const shown = JSON.parse(
        run(ENV, commandOf(user, command, 'inspect', '-o', 'json', blob), user),
      ) as object;
      t.match(JSON.stringify(shown), /org\.devstate\.nvme/);
    } finally {
      server.kill('SIGTERM');
      await ended;
    }
  }

  t.test('runs with its prebuilt addon, without a compiler', async () => works(userWith(bare)));

  t.test('the prebuilt addon needs no newer glibc than is said, and no libstdc++', async (t) => {
    const addon = join(installed, 'native/prebuilds', PLATFORM, 'devstate.node');
    const symbols = run('readelf', ['--dyn-syms', '--wide', addon]);
    const versions = [...symbols.matchAll(/GLIBC_(\d+)\.(\d+)/g)].map(([, a, b]) => [Number(a), Number(b)]);
    const newer = versions.filter(([a, b]) => a! > OLDEST_GLIBC[0]! || b! > OLDEST_GLIBC[1]!);
    t.ok(versions.length > 0);
    t.same(newer, []);
    t.notMatch(run('readelf', ['-d', addon]), /libstdc\+\+/);
  });

  /** What `serve` says when it cannot. */
  function refusal(user: User): string {
    const args = commandOf(user, command, 'serve', 'sample', '--socket', join(folder, 'none'));
    const { status, stderr } = spawnSync(ENV, args, { ...user, encoding: 'utf8' });
    t.equal(status, 1);
    return stderr;
  }

  t.test('without prebuild', async (t) => {
    rmSync(join(installed, 'native/prebuilds'), { recursive: true });

    t.test('nor compiler, says what is missing', async (t) => {
      const said = refusal(userWith(bare));
      t.match(said, /DEVSTATE_E_ADDON/);
      t.match(said, /no C\+\+ compiler .*install one/s);
    });

    t.test('builds one, several processes at once', async (t) => {
      const user = userWith(process.env.PATH ?? '');
      await Promise.all([works(user), works(user)]);
      const built = join(installed, 'native/built');
      const [name] = readdirSync(built);
      t.same(readdirSync(join(built, name!)), ['devstate.node'], 'and nothing is left behind');
      const { mtimeMs } = statSync(join(built, name!, 'devstate.node'));
      await works(userWith(bare));
      t.equal(statSync(join(built, name!, 'devstate.node')).mtimeMs, mtimeMs, 'it is not built again');
    });
  });

  t.test(
    'an addon of another machine is named, and one is built, in the cache of who may not write here',
    async (t) => {
      rmSync(join(installed, 'native/built'), { recursive: true });
      mkdirSync(join(installed, 'native/prebuilds', PLATFORM), { recursive: true });
      cpSync('/usr/bin/env', join(installed, 'native/prebuilds', PLATFORM, 'devstate.node'));
      t.match(refusal(userWith(bare)), /does not load on linux-.* with .*no C\+\+ compiler/s);

      // What root may write is everything: it becomes somebody else.
      const somebody = process.getuid?.() === 0 ? { uid: 65534, gid: 65534 } : {};
      chmodSync(join(installed, 'native'), 0o555);
      t.teardown(() => chmodSync(join(installed, 'native'), 0o755));
      mkdirSync(home, { recursive: true });
      const user = { ...userWith(SYSTEM_PATH), ...somebody };
      chmodSync(home, 0o555);
      t.match(refusal(user), /none of .* can be written; set XDG_CACHE_HOME/);
      chmodSync(home, 0o755);
      if (somebody.uid !== undefined) chownSync(home, somebody.uid, somebody.gid);
      await works(user);
      t.notOk(existsSync(join(installed, 'native/built')));
      const cached = join(home, '.cache/devstate/addon');
      t.same(readdirSync(join(cached, readdirSync(cached)[0]!)), ['devstate.node']);
      await works({ ...user, ...userWith(bare) });
    },
  );
});
