// SPDX-License-Identifier: Apache-2.0
/** `devstate serve`: a device server, until it is asked to end. `serve nvme`, and the others. */

import { closeSync, existsSync, openSync, readSync, rmSync, statSync } from 'node:fs';
import { Command, Option } from 'commander';
import { ImageFile } from '../devices/nvme/image-file.js';
import { nvmeModel, resolveNvmeParameters } from '../devices/nvme/spec/index.js';
import { endOfLink } from '../end-of-link.js';
import { DevstateError } from '../errors.js';
import { modelJson, SIGNATURE_LENGTH, saysNoRawDisk } from '../formats/index.js';
import { TAKEOVER_VARIABLE } from '../handoff/index.js';
import { whySystem } from '../native/index.js';
import { DeviceRuntime } from '../runtime/index.js';
import { type CrashJournal, Server } from '../server/index.js';
import { goesOn, journalOption, openCrashJournal, serviceEnvironment } from './crash-journal.js';
import { createLog } from './logger.js';
import {
  collectParameter,
  parseSize,
  type ServedProtocolOptions,
  servedProtocolOptions,
  servedProtocols,
} from './options.js';
import { printJson } from './output.js';
import { serveCounterCommand } from './serve-counter.js';
import { serveSampleCommand } from './serve-sample.js';
import { untilTold } from './signals.js';

interface ServeNvmeOptions extends ServedProtocolOptions {
  socket?: string;
  migrationSocket?: string;
  image?: string;
  size?: number;
  vendor: keyof typeof VENDORS;
  param: Record<string, string>;
  incoming?: boolean;
  format?: string[];
  printModelJson?: boolean;
  journal?: boolean;
  force?: boolean;
}

const VENDORS = {
  alder: async () => (await import('../devices/nvme/alder/index.js')).createAlderNvme,
  birch: async () => (await import('../devices/nvme/birch/index.js')).createBirchNvme,
};

/** Size of an image that is created without --size. */
const DEFAULT_IMAGE_SIZE = 64 * 2 ** 20;

export function serveCommand(): Command {
  return new Command('serve')
    .description('serve a device over vfio-user')
    .addCommand(serveNvmeCommand())
    .addCommand(serveSampleCommand())
    .addCommand(serveCounterCommand());
}

function serveNvmeCommand(): Command {
  const command = new Command('nvme')
    .description('an NVMe controller with one namespace in an image file')
    .option('--socket <path>', 'where the VMM connects')
    .option('--migration-socket <path>', 'where managers connect')
    .option('--image <file>', 'raw image of the namespace; created if it is not there')
    .option('--size <size>', 'size of the namespace (of a new image: 64M)', parseSize)
    .addOption(
      new Option('--vendor <name>', 'whose implementation').choices(Object.keys(VENDORS)).default('alder'),
    )
    .option('--param <key=value>', 'a parameter of the device model (repeatable)', collectParameter, {})
    .option('--incoming', "be a migration's destination: leave the image alone until state is loaded")
    .option(
      '--format <name>',
      'a format to offer for the state, NAME or NAME@MAJOR, instead of all; values for value by value (repeatable)',
      (name: string, all: string[] | undefined) => [...(all ?? []), name],
    )
    .addOption(journalOption())
    .option('--force', 'serve the image although it is in a format of its own, such as qcow2')
    .option(
      '--print-model-json',
      'print the model with its parameters and what they can be, and serve nothing',
    );
  for (const option of servedProtocolOptions()) command.addOption(option);
  return command.action(serveNvme);
}

async function serveNvme(options: ServeNvmeOptions): Promise<void> {
  if (options.printModelJson === true) return printModel(options);
  const { socket, image } = options;
  if (socket === undefined) throw missing('--socket <path>');
  if (image === undefined) throw missing('--image <file>');
  return serve({ ...options, socket, image });
}

function missing(option: string): DevstateError {
  return new DevstateError('DEVSTATE_E_USAGE', `required option '${option}' not specified; see --help`);
}

/** The parameters' initial values are those that a server started with the same options would have. */
function printModel(options: ServeNvmeOptions): void {
  const exists = options.image !== undefined && existsSync(options.image);
  const size = options.size ?? (exists ? statSync(options.image ?? '').size : DEFAULT_IMAGE_SIZE);
  printJson(modelJson(nvmeModel(resolveNvmeParameters(options.param, size))));
}

/** With what a server cannot do without. */
type Serving = ServeNvmeOptions & { socket: string; image: string };

async function serve(options: Serving): Promise<void> {
  if (options.socket === options.migrationSocket) {
    throw new DevstateError(
      'DEVSTATE_E_USAGE',
      '--socket and --migration-socket are the same path; give each its own',
    );
  }
  const protocols = servedProtocols(options);
  // Before an image is created: a wrong parameter is to leave nothing behind.
  resolveNvmeParameters(options.param, options.size ?? DEFAULT_IMAGE_SIZE);
  // Listened for before the sockets exist: a process that sees them may send one.
  const told = untilTold();
  const log = createLog('nvme');
  const environment = serviceEnvironment(options);
  const takeover = process.env[TAKEOVER_VARIABLE];
  const incoming = options.incoming === true;
  const isNew = !existsSync(options.image);
  const image = openImage(options, incoming || takeover !== undefined || goesOn(environment));
  let serves = false;
  let crash: CrashJournal | undefined;
  try {
    const create = await VENDORS[options.vendor]();
    const device = create({ image, parameters: options.param });
    crash = openCrashJournal(device, environment, { wanted: options.journal, log });
    const server = new Server({
      device: new DeviceRuntime(device, {
        name: 'nvme',
        log,
        crash,
        ...(options.format === undefined ? {} : { formats: options.format }),
        ...protocols,
      }),
      socketPath: options.socket,
      ...(options.migrationSocket === undefined ? {} : { migrationSocketPath: options.migrationSocket }),
      ...(takeover === undefined ? {} : { takeover }),
      crash,
      log,
    });
    serves = true;
    if (takeover !== undefined) log('info', `waiting to take over ${options.socket}`);
    else log('info', `serving ${options.image} at ${options.socket}${incoming ? ', incoming' : ''}`);
    try {
      await Promise.race([told, server.ended]);
    } finally {
      await server.close();
    }
  } finally {
    await image.close();
    crash?.close();
    // An image that was made for nothing.
    if (isNew && !serves) rmSync(options.image, { force: true });
  }
}

/**
 * A file that holds a disk in another way than byte by byte, or no disk, would be destroyed by the guest's writes. What a guest
 * itself has written to its disk is looked at by none but the first server of it.
 * @throws DEVSTATE_E_IMAGE_OPEN
 */
function requireRaw({ image, force = false }: Serving): void {
  if (force || statSync(image, { throwIfNoEntry: false })?.isFile() !== true) return;
  const what = saysNoRawDisk(headOf(image));
  if (what === undefined) return;
  const next = `convert it first (qemu-img convert -O raw), or give --force to serve its bytes as they are`;
  throw new DevstateError('DEVSTATE_E_IMAGE_OPEN', `${image} is ${what}, not a raw image: ${next}`);
}

/** @throws DEVSTATE_E_IMAGE_OPEN */
function headOf(image: string): Uint8Array {
  const head = new Uint8Array(SIGNATURE_LENGTH);
  let fd: number | undefined;
  try {
    fd = openSync(image, 'r');
    return head.subarray(0, readSync(fd, head, 0, head.length, 0));
  } catch (cause) {
    throw new DevstateError('DEVSTATE_E_IMAGE_OPEN', `cannot read ${image}: ${whySystem(cause)}`, { cause });
  } finally {
    if (fd !== undefined) closeSync(fd);
  }
}

function openImage(options: Serving, incoming: boolean): ImageFile {
  if (!incoming) requireRaw(options);
  // Somebody else's link could lead to any file that this user may write.
  endOfLink(options.image);
  const isNew = !incoming && !existsSync(options.image);
  const size = options.size ?? (isNew ? DEFAULT_IMAGE_SIZE : undefined);
  return ImageFile.open({ path: options.image, lock: !incoming, ...(size === undefined ? {} : { size }) });
}
