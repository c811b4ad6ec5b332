// SPDX-License-Identifier: Apache-2.0
/** DEVICE_FEATURE: one table of features, each with what GET and SET do. */

import {
  DMA_FILE_ENTRY_LENGTH,
  DMA_LOGGING_REPORT_LENGTH,
  DMA_MAP_ENTRY_LENGTH,
  decodeConfigReadsRequest,
  decodeDmaLoggingReport,
  decodeDmaLoggingStart,
  decodeDmaMapsRequest,
  decodeErrorOf,
  decodeFeatureHeader,
  decodeFormatSelection,
  decodeImageByte,
  decodeNamedValue,
  decodeValueName,
  dirtyBitmapLength,
  Errno,
  encodeConfigReads,
  encodeDmaFileEntries,
  encodeDmaLoggingReport,
  encodeDmaMapEntries,
  encodeFeatureHeader,
  encodeFormatOffers,
  encodeValue,
  encodeValueNames,
  FEATURE_LENGTH,
  Feature,
  FeatureFlag,
  formatOffersLength,
  HEADER_LENGTH,
  MAX_EXPLANATION_LENGTH,
  MAX_IMAGE_BYTE,
  MIG_DEVICE_STATE_LENGTH,
  MIN_IMAGE_BYTE,
  RequestError,
  requireBytes,
  writeU64,
} from '../wire/index.js';
import { MAX_NOTE_LENGTH } from './capabilities.js';
import type { CommandHandler, Request, ServerContext } from './command.js';
import { requireMigration } from './migration-commands.js';
import type { Reply } from './reply.js';
import type { ImagesPort, ValuesPort } from './served-device.js';

/** The folders of an absolute path. */
const FOLDERS = /(?<![^\s"'(=])\/\S*\//g;

interface FeatureHandlers {
  /** Only on the migration socket. */
  readonly managerOnly?: boolean;
  /** Whether the device has the feature. Default: always. */
  readonly exists?: (context: ServerContext) => boolean;
  /** Writes the whole reply payload, by `startReply`. `data` is where the request's data begin. */
  readonly get?: (
    context: ServerContext,
    request: Request,
    data: number,
    reply: Reply,
  ) => void | Promise<void>;
  /** May change the data, which are echoed in the reply. */
  readonly set?: (context: ServerContext, request: Request, data: number) => void | Promise<void>;
}

/** Begins a GET reply with `length` bytes of data; returns where they go. @throws RequestError EINVAL if argsz is too small */
function startReply(reply: Reply, request: Request, length: number): number {
  const { argsz, flags } = decodeFeatureHeader(request.view, request.at, request.end);
  if (argsz < FEATURE_LENGTH + length) {
    throw new RequestError(Errno.EINVAL, `argsz ${argsz}: DEVICE_FEATURE needs ${FEATURE_LENGTH + length}`);
  }
  reply.allocate(FEATURE_LENGTH + length);
  encodeFeatureHeader(reply.view, HEADER_LENGTH, FEATURE_LENGTH + length, flags);
  return HEADER_LENGTH + FEATURE_LENGTH;
}

function replyWithBytes(reply: Reply, request: Request, bytes: Uint8Array): void {
  const at = startReply(reply, request, bytes.length);
  reply.bytes.set(bytes, at);
}

const migrates = ({ migration }: ServerContext): boolean => migration !== undefined;
const migratesByV2 = ({ migration }: ServerContext): boolean => migration?.servesV2 === true;

const features = new Map<number, FeatureHandlers>([
  [
    Feature.MIGRATION,
    {
      exists: migratesByV2,
      get: (context, request, _data, reply) => {
        writeU64(reply.view, startReply(reply, request, 8), requireMigration(context).flags);
      },
    },
  ],
  [
    Feature.MIG_DEVICE_STATE,
    {
      exists: migratesByV2,
      get: (context, request, _data, reply) => {
        const at = startReply(reply, request, MIG_DEVICE_STATE_LENGTH);
        reply.view.setUint32(at, requireMigration(context).state, true);
        reply.view.setInt32(at + 4, -1, true);
      },
      set: (context, { view, end }, data) => {
        requireBytes(view, data, end, MIG_DEVICE_STATE_LENGTH, 'MIG_DEVICE_STATE');
        return requireMigration(context).setState(view.getUint32(data, true));
      },
    },
  ],
  [
    Feature.DMA_LOGGING_START,
    {
      exists: migratesByV2,
      set: (context, { view, end }, data) => {
        const pageSize = requireMigration(context).startLogging(decodeDmaLoggingStart(view, data, end));
        writeU64(view, data, pageSize);
      },
    },
  ],
  [
    Feature.DMA_LOGGING_STOP,
    { exists: migratesByV2, set: (context) => requireMigration(context).stopLogging() },
  ],
  [
    Feature.DMA_LOGGING_REPORT,
    {
      exists: migratesByV2,
      get: (context, request, data, reply) => {
        const report = decodeDmaLoggingReport(request.view, data, request.end);
        const length = dirtyBitmapLength(report.length, report.pageSize);
        if (!(length <= context.maxTransfer)) {
          throw new RequestError(Errno.E2BIG, `dirty bitmap of ${length} bytes: ask for less at a time`);
        }
        const at = startReply(reply, request, DMA_LOGGING_REPORT_LENGTH + length);
        encodeDmaLoggingReport(reply.view, at, report);
        const bitmap = at + DMA_LOGGING_REPORT_LENGTH;
        return requireMigration(context).reportLogging(report, reply.bytes.subarray(bitmap, bitmap + length));
      },
    },
  ],
  [
    Feature.MIG_DATA_SIZE,
    {
      exists: migratesByV2,
      get: (context, request, _data, reply) => {
        writeU64(reply.view, startReply(reply, request, 8), requireMigration(context).dataSize);
      },
    },
  ],
  [
    Feature.DEVSTATE_DESCRIPTION,
    {
      managerOnly: true,
      get: ({ device }, request, _data, reply) => {
        replyWithBytes(reply, request, new TextEncoder().encode(device.management.describe()));
      },
    },
  ],
  [
    Feature.DEVSTATE_NOTE,
    {
      managerOnly: true,
      get: ({ device }, request, _data, reply) => replyWithBytes(reply, request, device.management.note),
      set: ({ device }, { bytes, end }, data) => {
        if (end - data > MAX_NOTE_LENGTH) throw new RequestError(Errno.E2BIG, `note of ${end - data} bytes`);
        device.management.note = bytes.slice(data, end);
      },
    },
  ],
  [
    // A relay asks as the VMM that it is to the server, for the error of one command: others' are in between.
    Feature.DEVSTATE_LAST_ERROR,
    {
      get: ({ lastError, role }, request, data, reply) => {
        const { id, words } = lastError;
        const isMeant = decodeErrorOf(request.view, data, request.end) ?? id;
        // A VMM has no need to know folders of the host.
        const shown = role === 'manager' ? words : words.replaceAll(FOLDERS, '');
        const text = isMeant === id ? shown.slice(0, MAX_EXPLANATION_LENGTH) : '';
        replyWithBytes(reply, request, new TextEncoder().encode(text));
      },
    },
  ],
  [
    Feature.DEVSTATE_WRITE_BY_MESSAGE,
    {
      managerOnly: true,
      exists: migrates,
      set: (context, { view, end }, data) => {
        requireBytes(view, data, end, 4, 'DEVSTATE_WRITE_BY_MESSAGE');
        requireMigration(context).writeByMessage(view.getUint32(data, true) !== 0);
      },
    },
  ],
  [
    Feature.DEVSTATE_FORMATS,
    {
      managerOnly: true,
      exists: migrates,
      get: (context, request, _data, reply) => {
        const offers = requireMigration(context).formatOffers();
        const at = startReply(reply, request, formatOffersLength(offers.length));
        encodeFormatOffers(reply.view, at, offers);
      },
      set: (context, { view, end }, data) => {
        requireMigration(context).selectFormat(decodeFormatSelection(view, data, end));
      },
    },
  ],
  [
    Feature.DEVSTATE_VALUES,
    {
      managerOnly: true,
      exists: ({ migration }) => migration?.values !== undefined,
      get: (context, request, data, reply) => {
        const values = requireValues(context);
        const name = decodeValueName(request.bytes.subarray(data, request.end));
        const bytes = name === '' ? encodeValueNames(values.names()) : encodeValue(values.get(name));
        replyWithBytes(reply, request, bytes);
      },
      set: (context, { bytes, end }, data) => {
        const { name, value } = decodeNamedValue(bytes.subarray(data, end));
        requireValues(context).set(name, value);
      },
    },
  ],
  [
    Feature.DEVSTATE_HANDOFF,
    {
      managerOnly: true,
      exists: ({ handOver }) => handOver !== undefined,
      get: async ({ handOver }, request, data, reply) => {
        const text = new TextDecoder().decode(request.bytes.subarray(data, request.end));
        const report = await handOver?.(text);
        replyWithBytes(reply, request, new TextEncoder().encode(report));
      },
    },
  ],
  [
    Feature.DEVSTATE_NEXT_VMM,
    {
      managerOnly: true,
      exists: ({ nextVmm }) => nextVmm !== undefined,
      get: ({ nextVmm }, request, _data, reply) =>
        replyWithBytes(reply, request, new TextEncoder().encode(nextVmm?.status())),
      set: ({ nextVmm }, { bytes, end }, data) =>
        nextVmm?.request(new TextDecoder().decode(bytes.subarray(data, end))),
    },
  ],
  [
    Feature.DEVSTATE_CONFIG_READS,
    {
      managerOnly: true,
      exists: ({ configReadsOf }) => configReadsOf !== undefined,
      get: ({ configReadsOf }, request, data, reply) => {
        const { since, vmm } = decodeConfigReadsRequest(request.view, data, request.end);
        const log = configReadsOf?.(vmm);
        if (log === undefined) throw new RequestError(Errno.ENOTCONN, 'no such VMM is connected');
        replyWithBytes(reply, request, encodeConfigReads(log.report(since)));
      },
    },
  ],
  [
    // A relay asks as the VMM that it is to the server.
    Feature.DEVSTATE_IMAGES,
    {
      exists: ({ device }) => device.management.images !== undefined,
      get: (context, request, data, reply) => {
        const { images } = requireImages(context).report(imageByte(request, data));
        // A VMM has no need to know paths of the host.
        const shown = context.role === 'manager' ? images : images.map(({ path: _, ...rest }) => rest);
        replyWithBytes(reply, request, new TextEncoder().encode(JSON.stringify({ images: shown })));
      },
      set: (context, request, data) => {
        const isNone = decodeImageByte(request.view, data, request.end) === 0;
        requireImages(context).leaveOut(isNone ? undefined : imageByte(request, data));
      },
    },
  ],
  [
    Feature.DEVSTATE_DMA_MAPS,
    {
      managerOnly: true,
      get: ({ device }, request, data, reply) => {
        const maps = device.management.dmaMaps(decodeDmaMapsRequest(request.view, data, request.end));
        const at = startReply(reply, request, maps.length * DMA_MAP_ENTRY_LENGTH);
        encodeDmaMapEntries(reply.view, at, maps); // not before startReply: it may have moved the reply
      },
    },
  ],
  [
    Feature.DEVSTATE_DMA_FILES,
    {
      managerOnly: true,
      get: ({ device, peer }, request, data, reply) => {
        const asked = decodeDmaMapsRequest(request.view, data, request.end);
        const { entries, files } = device.management.dmaFiles(peer.maxMsgFds, asked);
        const at = startReply(reply, request, entries.length * DMA_FILE_ENTRY_LENGTH);
        encodeDmaFileEntries(reply.view, at, entries);
        reply.fds = files;
      },
    },
  ],
]);

/** @throws RequestError ENOTTY when the device does not give its state value by value */
function requireValues(context: ServerContext): ValuesPort {
  const { values } = requireMigration(context);
  if (values === undefined) throw new RequestError(Errno.ENOTTY, 'the device has no state value by value');
  return values;
}

/** @throws RequestError ENOTTY when the device works on no image */
function requireImages({ device }: ServerContext): ImagesPort {
  const { images } = device.management;
  if (images === undefined) throw new RequestError(Errno.ENOTTY, 'the device works on no image');
  return images;
}

/** @throws RequestError EINVAL for a byte that could be one of an image */
function imageByte({ view, end }: Request, data: number): number {
  const byte = decodeImageByte(view, data, end);
  if (byte >= MIN_IMAGE_BYTE && byte < MAX_IMAGE_BYTE) return byte;
  throw new RequestError(Errno.EINVAL, `byte ${byte} is not far beyond the end of an image`);
}

/** The feature's handlers, for this connection. @throws RequestError ENOTTY when there is no such feature */
function findFeature(context: ServerContext, index: number): FeatureHandlers {
  const handlers = features.get(index);
  const hidden =
    handlers === undefined ||
    (handlers.managerOnly === true && context.role !== 'manager') ||
    handlers.exists?.(context) === false;
  if (hidden) throw new RequestError(Errno.ENOTTY, `no device feature ${index}`);
  return handlers;
}

export const deviceFeature: CommandHandler = (context, request, reply) => {
  const { argsz, flags } = decodeFeatureHeader(request.view, request.at, request.end);
  const { GET, SET, PROBE, INDEX_MASK } = FeatureFlag;
  const operation = flags & (GET | SET);
  const probe = (flags & PROBE) !== 0;
  const known = (flags & ~(INDEX_MASK | GET | SET | PROBE)) === 0;
  if (argsz < FEATURE_LENGTH || !known || (!probe && operation !== GET && operation !== SET)) {
    throw new RequestError(Errno.EINVAL, `DEVICE_FEATURE flags 0x${flags.toString(16)}, argsz ${argsz}`);
  }
  const handlers = findFeature(context, flags & INDEX_MASK);
  if (
    ((operation & GET) !== 0 && handlers.get === undefined) ||
    ((operation & SET) !== 0 && handlers.set === undefined)
  ) {
    throw new RequestError(Errno.ENOTTY, `device feature ${flags & INDEX_MASK} does not do that`);
  }
  const data = request.at + FEATURE_LENGTH;
  if (!probe && operation === GET) return handlers.get?.(context, request, data, reply);

  const echo = (): void => {
    reply.allocate(request.end - request.at);
    reply.bytes.set(request.bytes.subarray(request.at, request.end), HEADER_LENGTH);
  };
  const done = probe ? undefined : handlers.set?.(context, request, data);
  if (done !== undefined) return done.then(echo);
  echo();
};
