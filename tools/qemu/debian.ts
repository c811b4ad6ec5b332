// SPDX-License-Identifier: Apache-2.0
/**
 * Fetches and unpacks packages of a Debian release without root and without touching the machine's own packages.
 *
 * apt runs on a private state: its own source list, lists, cache and an empty `status`, so that it believes nothing is
 * installed and a closure includes the C library. The mirror is the one the machine's own apt uses. Signatures are
 * checked as apt always does; an archive keyring too old for the release is replaced by the newer package of the
 * machine's own, trusted, archive.
 */
import { existsSync } from 'node:fs';
import { mkdir, readdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { run } from './run.js';

/** Tells the user what happens, one line at a time. */
export type Report = (line: string) => void;

/** Archive roots among the URIs that `apt-get update --print-uris` prints, the likeliest mirror of Debian first. */
export function mirrorsOf(printedUris: string): string[] {
  const roots = new Set<string>();
  for (const match of printedUris.matchAll(/^'([^']+?)\/dists\/([^'/]+)\/InRelease'/gm)) {
    const [, root = '', suite = ''] = match;
    // Security and third-party archives hold no whole release; a wrong guess among the rest only costs a failed update.
    if (!suite.endsWith('-security')) roots.add(root);
  }
  const isDebian = (root: string) => /\/debian$/.test(root);
  return [...roots].sort((a, b) => Number(isDebian(b)) - Number(isDebian(a)));
}

/** A release of Debian, reachable through a private apt state in one directory. */
export class DebianRelease {
  readonly #directory: string;
  readonly #options: readonly string[];

  private constructor(directory: string, options: readonly string[]) {
    this.#directory = directory;
    this.#options = options;
  }

  /**
   * Sets up the private state in `directory` and fetches the package lists of `suites`.
   * Throws, with the reason, if the machine has no apt, no mirror of Debian or cannot reach it.
   */
  static async open(
    directory: string,
    suites: readonly string[],
    report: Report,
    architecture = 'amd64',
  ): Promise<DebianRelease> {
    const printed = await run('apt-get', ['update', '--print-uris']);
    const configured = process.env.DEVSTATE_DEBIAN_MIRROR;
    const mirrors = configured ? [configured] : mirrorsOf(printed);
    if (mirrors.length === 0) throw new Error('apt has no archive configured; set DEVSTATE_DEBIAN_MIRROR');
    const failures: string[] = [];
    for (const mirror of mirrors) {
      try {
        return await DebianRelease.#openMirror(directory, mirror, suites, report, architecture);
      } catch (error) {
        failures.push(error instanceof Error ? error.message : String(error));
      }
    }
    throw new Error(`no mirror has ${suites.join(' and ')}: ${failures.join('; ')}`);
  }

  static async #openMirror(
    directory: string,
    mirror: string,
    suites: readonly string[],
    report: Report,
    architecture: string,
  ) {
    const attempt = async (keyring: string | undefined) => {
      const options = await privateState(directory, [
        'Types: deb',
        `URIs: ${mirror}`,
        `Suites: ${suites.join(' ')}`,
        'Components: main',
        // Without a keyring of the distribution, apt falls back on the keys the machine's owner trusts.
        ...(keyring === undefined ? [] : [`Signed-By: ${keyring}`]),
      ]);
      // Only this one's lists are fetched, whatever machine this is.
      options.push('-o', `APT::Architecture=${architecture}`, '-o', `APT::Architectures=${architecture}`);
      await run('apt-get', [...options, '-o', 'APT::Update::Error-Mode=any', 'update']);
      return new DebianRelease(directory, options);
    };
    report(`fetching the package lists of ${suites.join(' and ')}`);
    try {
      return await attempt(installedKeyring());
    } catch (error) {
      if (!/NO_PUBKEY|Missing key|not signed/.test(error instanceof Error ? error.message : '')) throw error;
      report('the archive keyring of this machine is too old for it: fetching the current one');
      return await attempt(await currentKeyring(directory));
    }
  }

  /** Downloads `packages` and all they depend on, preferring versions from `suite`; paths of the .deb files. */
  async downloadClosure(packages: readonly string[], suite: string): Promise<string[]> {
    await run('apt-get', [...this.#options, '-y', '--download-only', '-t', suite, 'install', ...packages]);
    return debFiles(join(this.#directory, 'cache/archives'));
  }

  /** Downloads one package alone; the path of its .deb file. */
  async download(name: string): Promise<string> {
    const target = join(this.#directory, 'download', name);
    await mkdir(target, { recursive: true });
    await run('apt-get', [...this.#options, 'download', name], { cwd: target });
    return (await debFiles(target))[0]!;
  }

  /** Names of the packages that `name` depends on directly. */
  async dependencies(name: string): Promise<string[]> {
    const printed = await run('apt-cache', [...this.#options, 'depends', name]);
    return [...printed.matchAll(/^ +\|?Depends: ([^\s<>]+)$/gm)].map((match) => match[1]!);
  }
}

/** Unpacks a .deb file below `root`, as the current user. */
export async function unpack(deb: string, root: string): Promise<void> {
  await run('dpkg', ['-x', deb, root]);
}

/** Lays out an apt state in `directory` whose only source is `source` (deb822 lines); the options that select it. */
async function privateState(directory: string, source?: readonly string[]): Promise<string[]> {
  await mkdir(join(directory, 'state/lists/partial'), { recursive: true });
  await mkdir(join(directory, 'cache/archives/partial'), { recursive: true });
  await writeFile(join(directory, 'status'), '');
  const settings = [
    `Dir::State=${join(directory, 'state')}`,
    `Dir::State::status=${join(directory, 'status')}`,
    `Dir::Cache=${join(directory, 'cache')}`,
    'APT::Install-Recommends=false',
    'Acquire::Languages=none',
    'Acquire::Retries=2',
    // Root's apt would drop to a user who cannot write here.
    'APT::Sandbox::User=',
  ];
  if (source !== undefined) {
    const list = join(directory, 'private.sources');
    await writeFile(list, `${source.join('\n')}\n`);
    settings.push(`Dir::Etc::sourcelist=${list}`, 'Dir::Etc::sourceparts=/dev/null');
  }
  return settings.flatMap((setting) => ['-o', setting]);
}

function installedKeyring(): string | undefined {
  return ['pgp', 'gpg']
    .map((extension) => `/usr/share/keyrings/debian-archive-keyring.${extension}`)
    .find((path) => existsSync(path));
}

/**
 * Unpacks into `root` those of `packages`, with all they depend on, that this machine lacks, from the archives that it
 * itself trusts. Nothing is installed, and no root is needed.
 */
export async function unpackMissing(
  directory: string,
  packages: readonly string[],
  root: string,
): Promise<void> {
  const options = [
    ...(await privateState(directory)),
    // What is installed is not fetched again: programs of one release and libraries of another do not mix.
    ...['-o', 'Dir::State::status=/var/lib/dpkg/status', '-o', 'Debug::NoLocking=true'],
  ];
  await run('apt-get', [...options, 'update']);
  await run('apt-get', [...options, '-y', '--download-only', 'install', ...packages]);
  for (const deb of await debFiles(join(directory, 'cache/archives'))) await unpack(deb, root);
}

/** The keyring of the newest `debian-archive-keyring` package in the archives that the machine itself trusts. */
async function currentKeyring(directory: string): Promise<string> {
  const own = join(directory, 'keyring');
  const options = await privateState(own);
  await run('apt-get', [...options, 'update']);
  await run('apt-get', [...options, 'download', 'debian-archive-keyring'], {
    cwd: own,
  });
  await unpack((await debFiles(own))[0]!, own);
  return join(own, 'usr/share/keyrings/debian-archive-keyring.gpg');
}

async function debFiles(directory: string): Promise<string[]> {
  const names = await readdir(directory);
  return names.filter((name) => name.endsWith('.deb')).map((name) => join(directory, name));
}
