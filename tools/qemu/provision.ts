// SPDX-License-Identifier: Apache-2.0
/**
 * Provides a QEMU with `vfio-user-pci` and the parts of a small Linux guest, on machines whose distribution lacks them.
 *
 * A QEMU >= 10.1 that is installed (or named by `$DEVSTATE_QEMU`) is used as it is. Otherwise QEMU and its whole
 * closure come from the packages of Debian 13, unpacked into the cache and started through their own dynamic loader:
 * no root, nothing installed. Run as a program it prints what it found or made, as one JSON object.
 */
import { existsSync } from 'node:fs';
import { chmod, copyFile, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { cached } from './cache.js';
import { DebianRelease, type Report, unpack } from './debian.js';
import { run } from './run.js';

/** A QEMU that can be started: `spawn(command[0], [...command.slice(1), ...args], { env: environment })`. */
export interface QemuInstallation {
  /** The program and the leading arguments it always needs. */
  readonly command: readonly string[];
  /** Variables to add to the environment. */
  readonly environment: Readonly<Record<string, string>>;
  /** As QEMU names it, e.g. `11.1.3`. */
  readonly version: string;
  readonly origin: 'installed' | 'provisioned';
}

/** What a test guest is made of; paths of files. */
export interface GuestParts {
  /** An image that QEMU's -kernel takes, with the NVMe PCI driver built in. */
  readonly kernel: string;
  /** A statically linked busybox. */
  readonly busybox: string;
  /** The kernel's VFIO modules, in the order in which they load; none for a guest of another architecture. */
  readonly vfioModules: readonly string[];
}

const RELEASE = 'trixie';
const BACKPORTS = `${RELEASE}-backports`;

/** The machines that there are QEMUs and guests for. */
export type GuestArchitecture = 'x86_64' | 'arm64';

/** Each after those that it needs; the type 1 IOMMU backend is needed by no other module, but asked for by name. */
const VFIO_MODULES = ['irqbypass', 'vfio', 'vfio_iommu_type1', 'vfio-pci-core', 'vfio-pci'];

interface Recipe {
  readonly program: string;
  /** Names an installed QEMU to use. */
  readonly variable: string;
  readonly packages: readonly string[];
  // A changed recipe needs a new name of its entry: one that exists is taken as complete.
  readonly qemuEntry: string;
  readonly guestEntry: string;
  readonly kernel: string;
  /** Debian's name of the architecture. */
  readonly architecture: string;
  /** What is kept of the kernel's modules. */
  readonly modules: readonly string[];
}

const RECIPES: Readonly<Record<GuestArchitecture, Recipe>> = {
  x86_64: {
    program: 'qemu-system-x86_64',
    variable: 'DEVSTATE_QEMU',
    packages: ['qemu-system-x86', 'seabios'],
    qemuEntry: 'qemu-1',
    guestEntry: 'guest-2',
    kernel: 'linux-image-cloud-amd64',
    architecture: 'amd64',
    modules: VFIO_MODULES,
  },
  arm64: {
    program: 'qemu-system-aarch64',
    variable: 'DEVSTATE_QEMU_ARM64',
    packages: ['qemu-system-arm'],
    qemuEntry: 'qemu-arm64-1',
    guestEntry: 'guest-arm64-1',
    kernel: 'linux-image-cloud-arm64',
    architecture: 'arm64',
    modules: [],
  },
};

function toStderr(line: string): void {
  process.stderr.write(`provision: ${line}\n`);
}

/** {@link obtainQemu}, or `undefined` after telling `report` why there is none. */
export async function provisionQemu(report: Report = toStderr): Promise<QemuInstallation | undefined> {
  return orUndefined(() => obtainQemu(report), 'no QEMU with vfio-user-pci', report);
}

/** {@link obtainGuest}, or `undefined` after telling `report` why there is none. */
export async function provisionGuest(report: Report = toStderr): Promise<GuestParts | undefined> {
  return orUndefined(() => obtainGuest(report), 'no Linux guest', report);
}

/** A QEMU with `vfio-user-pci`: the installed one, or one from the cache, which is filled first if need be. */
export async function obtainQemu(
  report: Report = toStderr,
  architecture: GuestArchitecture = 'x86_64',
): Promise<QemuInstallation> {
  const { program, variable, packages: wanted, qemuEntry } = RECIPES[architecture];
  const named = process.env[variable];
  const version = await usableVersion([named ?? program]);
  if (version !== undefined) {
    return {
      command: [named ?? program],
      environment: {},
      version,
      origin: 'installed',
    };
  }
  if (named !== undefined) throw new Error(`${variable}=${named} does not run or has no vfio-user-pci`);
  requireX86('QEMU');
  const entry = await cached(qemuEntry, async (directory) => {
    await withRelease(report, async (release) => {
      report(`fetching ${program} and the libraries it needs (about 40 MB)`);
      const packages = await release.downloadClosure(wanted, BACKPORTS);
      report(`unpacking ${packages.length} packages`);
      for (const deb of packages) await unpack(deb, directory);
    });
    const { command, environment } = unpackedQemu(directory, program);
    const unpackedVersion = await usableVersion(command, environment);
    if (unpackedVersion === undefined) throw new Error(`the QEMU of ${BACKPORTS} has no vfio-user-pci`);
    await writeFile(join(directory, 'version'), unpackedVersion);
    report(`QEMU ${unpackedVersion} is ready`);
  });
  return {
    ...unpackedQemu(entry, program),
    version: await readFile(join(entry, 'version'), 'utf8'),
    origin: 'provisioned',
  };
}

/** Kernel, its VFIO modules and busybox for a guest, from the cache, which is filled first if need be. */
export async function obtainGuest(
  report: Report = toStderr,
  guest: GuestArchitecture = 'x86_64',
): Promise<GuestParts> {
  requireX86('the guest');
  const { guestEntry, kernel: metapackage, architecture, modules } = RECIPES[guest];
  const entry = await cached(guestEntry, async (directory) => {
    const use = async (release: DebianRelease): Promise<void> => {
      const images = await release.dependencies(metapackage);
      const image = images.find((name) => name.startsWith('linux-image-'));
      if (image === undefined) throw new Error(`${RELEASE} has no cloud kernel`);
      report(`fetching ${image} and busybox (about 36 MB)`);
      const unpacked = join(directory, 'unpacked');
      await unpack(await release.download(image), unpacked);
      await unpack(await release.download('busybox-static'), unpacked);
      const kernel = (await readdir(join(unpacked, 'boot'))).find((name) => name.startsWith('vmlinuz-'));
      if (kernel === undefined) throw new Error(`${image} has no vmlinuz`);
      await copyFile(join(unpacked, 'boot', kernel), join(directory, 'vmlinuz'));
      await copyFile(join(unpacked, 'usr/bin/busybox'), join(directory, 'busybox'));
      await chmod(join(directory, 'busybox'), 0o755);
      await copyModules(unpacked, directory, modules);
      await rm(unpacked, { recursive: true });
      report('the guest is ready');
    };
    await withRelease(report, use, architecture);
  });
  return {
    kernel: join(entry, 'vmlinuz'),
    busybox: join(entry, 'busybox'),
    vfioModules: modules.map((name) => join(entry, `${name}.ko`)),
  };
}

/** Copies the VFIO modules of an unpacked kernel package to `directory`, uncompressed. */
async function copyModules(unpacked: string, directory: string, wanted: readonly string[]): Promise<void> {
  const modules = join(unpacked, `${existsSync(join(unpacked, 'usr/lib/modules')) ? 'usr/' : ''}lib/modules`);
  const files = await readdir(modules, { recursive: true });
  for (const name of wanted) {
    const file = files.find((path) => path.endsWith(`/${name}.ko`) || path.endsWith(`/${name}.ko.xz`));
    if (file === undefined) throw new Error(`the cloud kernel has no module ${name}`);
    const path = join(modules, file);
    if (file.endsWith('.xz')) await run('xz', ['-d', path]);
    await copyFile(path.replace(/\.xz$/, ''), join(directory, `${name}.ko`));
  }
}

/** How to start the QEMU that was unpacked into `root`: by its own loader, libraries, firmware and modules. */
function unpackedQemu(root: string, program: string): Pick<QemuInstallation, 'command' | 'environment'> {
  const libraries = join(root, 'usr/lib/x86_64-linux-gnu');
  const command = [
    join(root, 'usr/lib64/ld-linux-x86-64.so.2'),
    ...['--library-path', `${libraries}:${join(libraries, 'pulseaudio')}`],
    join(root, 'usr/bin', program),
    ...['-L', join(root, 'usr/share/qemu'), '-L', join(root, 'usr/share/seabios')],
  ];
  return { command, environment: { QEMU_MODULE_DIR: join(libraries, 'qemu') } };
}

/** The version that `command` prints, if it runs and knows `vfio-user-pci` (QEMU 10.1 or newer). */
async function usableVersion(
  command: readonly string[],
  environment: Readonly<Record<string, string>> = {},
): Promise<string | undefined> {
  const [program = '', ...prefix] = command;
  try {
    const printed = await run(program, [...prefix, '--version'], {
      environment,
    });
    await run(program, [...prefix, '-device', 'vfio-user-pci,help'], {
      environment,
    });
    return /version (\d+(?:\.\d+)+)/.exec(printed)?.[1];
  } catch {
    return undefined;
  }
}

/** Lets `use` work with the packages of Debian 13. Throws, with the reason, where they cannot be had. */
export async function withRelease(
  report: Report,
  use: (release: DebianRelease) => Promise<void>,
  architecture = 'amd64',
): Promise<void> {
  if (!existsSync('/usr/bin/apt-get')) throw new Error('this machine has no apt to fetch packages with');
  const work = await mkdtemp(join(tmpdir(), 'devstate-apt-'));
  try {
    // A guest's kernel and busybox are the release's own.
    const suites = architecture === 'amd64' ? [RELEASE, BACKPORTS] : [RELEASE];
    await use(await DebianRelease.open(work, suites, report, architecture));
  } finally {
    await rm(work, { recursive: true, force: true });
  }
}

export function requireX86(what: string): void {
  if (process.arch !== 'x64') throw new Error(`${what} can be provisioned on x86-64 machines only`);
}

async function orUndefined<T>(
  obtain: () => Promise<T>,
  what: string,
  report: Report,
): Promise<T | undefined> {
  try {
    return await obtain();
  } catch (error) {
    report(`${what}: ${error instanceof Error ? error.message : String(error)}`);
    return undefined;
  }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const qemu = await provisionQemu();
  const guest = await provisionGuest();
  console.log(JSON.stringify({ qemu, guest }, undefined, 2));
  if (qemu === undefined || guest === undefined) process.exitCode = 1;
}
