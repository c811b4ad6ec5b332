// SPDX-License-Identifier: Apache-2.0
/**
 * Migration protocol v2 as its client drives it, and what our own migration sockets offer beyond it. The client of v1 is
 * one of these too, with the region instead of the commands.
 */

import { DevstateError } from '../errors.js';
import { type FormatOffer, uuidFromBytes, uuidToBytes } from '../formats/index.js';
import { type HandoffReport, type HandoffStatus, handoffReport, handoffStatus } from '../handoff/index.js';
import type { MigrationEnd, MigrationProtocol, ValueAccess } from '../migration/index.js';
import { closeAll, type Fd } from '../transport/index.js';
import {
  Command,
  type ConfigReads,
  type ConfigReadsRequest,
  DEFAULT_MAX_DMA_MAPS,
  DMA_LOGGING_REPORT_LENGTH,
  DMA_LOGGING_START_LENGTH,
  type DmaFileEntry,
  type DmaLoggingReport,
  type DmaLoggingStart,
  type DmaMapEntry,
  decodeConfigReads,
  decodeDmaFileEntries,
  decodeDmaMapEntries,
  decodeFormatOffers,
  decodeValue,
  decodeValueNames,
  dirtyBitmapLength,
  dmaTransferHeaderLength,
  encodeConfigReadsRequest,
  encodeDmaLoggingReport,
  encodeDmaLoggingStart,
  encodeDmaMapsRequest,
  encodeDmaTransfer,
  encodeFormatSelection,
  encodeImageByte,
  encodeMigrationData,
  encodeNamedValue,
  Feature,
  FeatureFlag,
  FORMAT_SELECTION_LENGTH,
  FormatFlag,
  formatFeatureBits,
  formatFeatureNames,
  HEADER_LENGTH,
  type ImagesReport,
  imagesReport,
  MAX_CONFIG_READS_LENGTH,
  MAX_VALUE_LENGTH,
  MIG_DATA_LENGTH,
  MIG_DEVICE_STATE_LENGTH,
  MigrationState,
  type NextVmmRequest,
  type NextVmmStatus,
  nextVmmStatus,
  requireBytes,
  type StateValue,
  type ValueNames,
  type WireFormatOffer,
} from '../wire/index.js';
import type { Client } from './client.js';
import { type DeviceDescription, deviceDescription } from './device-description.js';
import { decoded, FeatureClient, MAX_FEATURE_LENGTH, numberOf, parsed, viewOf } from './feature-client.js';
import type { Requester } from './requester.js';

/** What a server is asked for that is to hand over to its successor. Times in milliseconds, by phase. */
export interface HandoffRequest {
  /** Where the successor listens. */
  readonly socket: string;
  readonly format: { readonly uuid: string; readonly major: number; readonly minor: number };
  readonly timeouts?: Readonly<Record<string, number>>;
}

/** Ranges that are asked for in one message: a few milliseconds of work for a server. */
const RANGES_AT_ONCE = 4096;
const transferLength = dmaTransferHeaderLength(64);

export class MigrationClient<Through extends Requester = Client>
  extends FeatureClient<Through>
  implements MigrationEnd, ValueAccess
{
  readonly protocol: MigrationProtocol = 'v2';
  readonly streams = 'blob';

  /** Bytes that a `readData` should have room for, and most of a `writeData`. */
  get maxChunk(): number {
    return this.client.maxTransfer;
  }

  /** `MigrationFlag` bits. */
  async flags(): Promise<number> {
    return numberOf(await this.getFeature(Feature.MIGRATION, 8), 'MIGRATION');
  }

  async state(): Promise<MigrationState> {
    const data = await this.getFeature(Feature.MIG_DEVICE_STATE, MIG_DEVICE_STATE_LENGTH);
    if (data.length < MIG_DEVICE_STATE_LENGTH)
      throw new DevstateError('DEVSTATE_E_PROTOCOL', 'the server answers MIG_DEVICE_STATE without a state');
    return viewOf(data).getUint32(0, true) as MigrationState;
  }

  async setState(state: MigrationState): Promise<void> {
    const data = new Uint8Array(MIG_DEVICE_STATE_LENGTH);
    viewOf(data).setUint32(0, state, true);
    viewOf(data).setInt32(4, -1, true);
    await this.setFeature(Feature.MIG_DEVICE_STATE, data);
  }

  /** All has been loaded: the device becomes that, stopped still. Where the protocol cannot do the one without the other, when it is to run. */
  commitLoad(): Promise<void> {
    return this.setState(MigrationState.STOP);
  }

  /** Estimate, in bytes, of the data still to come; undefined when the server does not tell. */
  async dataSize(): Promise<number | undefined> {
    if (!(await this.probeFeature(Feature.MIG_DATA_SIZE, FeatureFlag.GET))) return undefined;
    return numberOf(await this.getFeature(Feature.MIG_DATA_SIZE, 8), 'MIG_DATA_SIZE');
  }

  /** vfio-user has no message for it. */
  precopyInfo(): Promise<undefined> {
    return Promise.resolve(undefined);
  }

  /** Reads migration data into `target`; the number of bytes, 0 at the end (in pre-copy: for now). */
  readData(target: Uint8Array): Promise<number> {
    const head = new Uint8Array(MIG_DATA_LENGTH);
    encodeMigrationData(viewOf(head), 0, { argsz: MIG_DATA_LENGTH + target.length, size: target.length });
    const read = this.client.request(Command.MIG_DATA_READ, [head], (frame) => {
      const start = HEADER_LENGTH + MIG_DATA_LENGTH;
      requireBytes(frame.view, HEADER_LENGTH, frame.length, MIG_DATA_LENGTH, 'MIG_DATA_READ reply');
      // libvfio-user pads the message: only `size` says how much there is.
      const size = frame.view.getUint32(HEADER_LENGTH + 4, true);
      if (size > target.length || start + size > frame.length) {
        throw new DevstateError(
          'DEVSTATE_E_PROTOCOL',
          `MIG_DATA_READ of ${target.length} bytes claims ${size}`,
        );
      }
      target.set(frame.bytes.subarray(start, start + size));
      return size;
    });
    return this.explained(read);
  }

  /** @param _options.whole what v1 calls a chunk is not to be divided; v2 has none */
  writeData(bytes: Uint8Array, _options: { whole?: boolean } = {}): Promise<void> {
    const head = new Uint8Array(MIG_DATA_LENGTH);
    encodeMigrationData(viewOf(head), 0, { argsz: MIG_DATA_LENGTH + bytes.length, size: bytes.length });
    return this.explained(this.client.request(Command.MIG_DATA_WRITE, [head, bytes], () => {}));
  }

  /** @returns the page size in force */
  async startLogging(start: DmaLoggingStart): Promise<number> {
    const data = new Uint8Array(DMA_LOGGING_START_LENGTH + 16 * start.ranges.length);
    encodeDmaLoggingStart(viewOf(data), 0, start);
    return numberOf(await this.setFeature(Feature.DMA_LOGGING_START, data), 'DMA_LOGGING_START');
  }

  /** Whether the device can write guest memory by messages to its VMM. */
  canWriteByMessage(): Promise<boolean> {
    return this.probeFeature(Feature.DEVSTATE_WRITE_BY_MESSAGE, FeatureFlag.SET);
  }

  /**
   * Has the device write guest memory by messages to its VMM while the log is on, or directly again.
   * @returns false when the server cannot
   */
  async writeByMessage(on: boolean): Promise<boolean> {
    if (!(await this.canWriteByMessage())) return false;
    const data = new Uint8Array(4);
    viewOf(data).setUint32(0, on ? 1 : 0, true);
    await this.setFeature(Feature.DEVSTATE_WRITE_BY_MESSAGE, data);
    return true;
  }

  async stopLogging(): Promise<void> {
    await this.setFeature(Feature.DMA_LOGGING_STOP, new Uint8Array(0));
  }

  /** The dirty bitmap of a range, which the server forgets with this. */
  async reportLogging(report: DmaLoggingReport): Promise<Uint8Array> {
    const data = new Uint8Array(DMA_LOGGING_REPORT_LENGTH);
    encodeDmaLoggingReport(viewOf(data), 0, report);
    const length = DMA_LOGGING_REPORT_LENGTH + dirtyBitmapLength(report.length, report.pageSize);
    const reply = await this.getFeature(Feature.DMA_LOGGING_REPORT, length, data);
    if (reply.length < length)
      throw new DevstateError('DEVSTATE_E_PROTOCOL', 'the dirty bitmap is too short');
    return reply.subarray(DMA_LOGGING_REPORT_LENGTH, length);
  }

  /** What the device says of itself; undefined when the server is not one of ours. */
  async description(): Promise<DeviceDescription | undefined> {
    if (!(await this.probeFeature(Feature.DEVSTATE_DESCRIPTION, FeatureFlag.GET))) return undefined;
    const bytes = await this.getFeature(Feature.DEVSTATE_DESCRIPTION, MAX_FEATURE_LENGTH);
    return parsed(deviceDescription, bytes, 'describes itself');
  }

  /** The formats that the device saves and loads; undefined when the server does not negotiate. */
  async formats(): Promise<FormatOffer[] | undefined> {
    if (!(await this.probeFeature(Feature.DEVSTATE_FORMATS, FeatureFlag.GET))) return undefined;
    const data = await this.getFeature(Feature.DEVSTATE_FORMATS, MAX_FEATURE_LENGTH);
    return decoded(() => decodeFormatOffers(viewOf(data), 0, data.length).map(offerOf));
  }

  /** Has the next saving, or loading, be of this format and no other. */
  async selectFormat(
    format: Pick<FormatOffer, 'uuid' | 'version'>,
    use: 'save' | 'load',
    features: readonly string[] = [],
  ): Promise<void> {
    const data = new Uint8Array(FORMAT_SELECTION_LENGTH);
    encodeFormatSelection(viewOf(data), 0, {
      uuid: uuidToBytes(format.uuid),
      ...format.version,
      flags: use === 'save' ? FormatFlag.SAVE : FormatFlag.LOAD,
      features: formatFeatureBits(features),
    });
    await this.setFeature(Feature.DEVSTATE_FORMATS, data);
  }

  /** Whether the device gives its state value by value. */
  hasValues(): Promise<boolean> {
    return this.probeFeature(Feature.DEVSTATE_VALUES, FeatureFlag.GET);
  }

  async values(): Promise<ValueAccess | undefined> {
    return (await this.hasValues()) ? this : undefined;
  }

  /** The format that names the values of the state, and, in STOP_COPY, their names. */
  async valueNames(): Promise<ValueNames> {
    const data = await this.getFeature(Feature.DEVSTATE_VALUES, MAX_FEATURE_LENGTH);
    return decoded(() => decodeValueNames(data));
  }

  async value(name: string): Promise<StateValue> {
    const data = await this.getFeature(
      Feature.DEVSTATE_VALUES,
      MAX_VALUE_LENGTH + 1,
      new TextEncoder().encode(name),
    );
    return decoded(() => decodeValue(data));
  }

  /** In RESUMING. */
  async setValue(name: string, value: StateValue): Promise<void> {
    await this.setFeature(Feature.DEVSTATE_VALUES, encodeNamedValue(name, value));
  }

  /** Whether the server can hand over to a successor. */
  canHandOver(): Promise<boolean> {
    return this.probeFeature(Feature.DEVSTATE_HANDOFF, FeatureFlag.GET);
  }

  /** Has the server hand over to the successor that listens at `request.socket`. @throws DEVSTATE_E_HANDOFF when it continues */
  async handOver(request: HandoffRequest, timeoutMs: number): Promise<HandoffReport> {
    const data = new TextEncoder().encode(JSON.stringify(request));
    try {
      const reply = this.getFeature(Feature.DEVSTATE_HANDOFF, MAX_FEATURE_LENGTH, data, { timeoutMs });
      return parsed(handoffReport, await reply, 'reports on its handoff');
    } catch (error) {
      if (!(error instanceof DevstateError) || error.code !== 'DEVSTATE_E_REFUSED') throw error;
      // It says which phase it ended in, and who continues.
      throw new DevstateError('DEVSTATE_E_HANDOFF', (await this.lastError()) ?? error.message, {
        cause: error,
      });
    }
  }

  /** Whether the server serves, or is a successor that has not taken over. */
  async handoffStatus(): Promise<HandoffStatus> {
    const data = await this.getFeature(Feature.DEVSTATE_HANDOFF, MAX_FEATURE_LENGTH);
    return parsed(handoffStatus, data, 'tells whether it serves');
  }

  /** Whether one VMM can follow another at this server while the device continues. */
  canFollow(): Promise<boolean> {
    return this.probeFeature(Feature.DEVSTATE_NEXT_VMM, FeatureFlag.GET);
  }

  /** How far the VMM's succession is. */
  async nextVmm(): Promise<NextVmmStatus> {
    const data = await this.getFeature(Feature.DEVSTATE_NEXT_VMM, MAX_FEATURE_LENGTH);
    return parsed(nextVmmStatus, data, 'tells who its VMM is');
  }

  async resets(): Promise<number | undefined> {
    return (await this.canFollow()) ? (await this.nextVmm()).resets : undefined;
  }

  /** The next step of it. @throws DEVSTATE_E_REFUSED when it cannot be taken: nothing has changed then */
  async setNextVmm(request: NextVmmRequest): Promise<void> {
    const data = new TextEncoder().encode(JSON.stringify(request));
    await this.setFeature(Feature.DEVSTATE_NEXT_VMM, data);
  }

  /** Whether the server tells which reads of configuration space its VMM has sent. */
  canWitness(): Promise<boolean> {
    return this.probeFeature(Feature.DEVSTATE_CONFIG_READS, FeatureFlag.GET);
  }

  /** The reads of configuration space that a VMM has sent. @throws DEVSTATE_E_REFUSED (ENOTCONN) when no such VMM is connected */
  async configReads(request: ConfigReadsRequest): Promise<ConfigReads> {
    const data = encodeConfigReadsRequest(request);
    const reply = await this.getFeature(Feature.DEVSTATE_CONFIG_READS, MAX_CONFIG_READS_LENGTH, data);
    return decoded(() => decodeConfigReads(viewOf(reply), 0, reply.length));
  }

  /** The images that the device works on, and whether others have byte `byte` of them locked; undefined when it does not say. */
  async images(byte: number): Promise<ImagesReport['images'] | undefined> {
    if (!(await this.probeFeature(Feature.DEVSTATE_IMAGES, FeatureFlag.GET))) return undefined;
    const data = await this.getFeature(Feature.DEVSTATE_IMAGES, MAX_FEATURE_LENGTH, encodeImageByte(byte));
    return parsed(imagesReport, data, 'tells which images it works on').images;
  }

  /** Has the device's locks of its images leave a byte out; 0 for none. */
  async leaveOut(byte: number): Promise<void> {
    await this.setFeature(Feature.DEVSTATE_IMAGES, encodeImageByte(byte));
  }

  note(): Promise<Uint8Array> {
    return this.getFeature(Feature.DEVSTATE_NOTE, MAX_FEATURE_LENGTH);
  }

  async setNote(bytes: Uint8Array): Promise<void> {
    await this.setFeature(Feature.DEVSTATE_NOTE, bytes);
  }

  async dmaMaps(): Promise<DmaMapEntry[]> {
    const all: DmaMapEntry[] = [];
    for (;;) {
      const request = encodeDmaMapsRequest({ first: all.length, most: RANGES_AT_ONCE });
      const data = await this.getFeature(Feature.DEVSTATE_DMA_MAPS, MAX_FEATURE_LENGTH, request);
      const entries = decoded(() => decodeDmaMapEntries(viewOf(data), 0, data.length));
      for (const entry of entries) all.push(entry);
      if (entries.length < RANGES_AT_ONCE) return all;
      requireFew(all.length);
    }
  }

  /** The DMA ranges that are files, with the files, the caller's to close; undefined when the server gives none away. */
  async dmaFiles(): Promise<{ readonly entries: DmaFileEntry[]; readonly fds: Fd[] } | undefined> {
    if (!(await this.probeFeature(Feature.DEVSTATE_DMA_FILES, FeatureFlag.GET))) return undefined;
    const entries: DmaFileEntry[] = [];
    const fds: Fd[] = [];
    try {
      for (let first = 0; ; first += RANGES_AT_ONCE) {
        const request = encodeDmaMapsRequest({ first, most: RANGES_AT_ONCE });
        const behind = encodeDmaMapsRequest({ first: first + RANGES_AT_ONCE, most: 1 });
        const more = this.getFeature(Feature.DEVSTATE_DMA_MAPS, MAX_FEATURE_LENGTH, behind);
        more.catch(() => {}); // It is waited for below, unless the other one fails first.
        const part = await this.getFeatureWithFds(Feature.DEVSTATE_DMA_FILES, MAX_FEATURE_LENGTH, request);
        // Each reply has the fds that its own ranges refer to.
        const before = fds.length;
        fds.push(...part.fds);
        const found = decoded(() => decodeDmaFileEntries(viewOf(part.data), 0, part.data.length));
        for (const entry of found) entries.push({ ...entry, file: before + entry.file });
        if ((await more).length === 0) return { entries, fds };
        requireFew(first + RANGES_AT_ONCE);
      }
    } catch (error) {
      closeAll(fds);
      throw error;
    }
  }

  /** Reads guest memory through the device's DMA ranges, in several messages if it is longer than a transfer may be. */
  async readMemory(address: number, target: Uint8Array): Promise<void> {
    const length = this.client.maxTransfer;
    for (let done = 0; done < target.length; done += length) {
      await this.#readPart(address + done, target.subarray(done, done + length));
    }
  }

  #readPart(address: number, target: Uint8Array): Promise<void> {
    const head = transferHead(address, target.length);
    const read = this.client.request(Command.DMA_READ, [head], (frame) => {
      const start = HEADER_LENGTH + transferLength;
      if (frame.length !== start + target.length)
        throw new DevstateError('DEVSTATE_E_PROTOCOL', 'DMA_READ reply is too short');
      target.set(frame.bytes.subarray(start, frame.length));
    });
    return this.explained(read);
  }

  /** Writes guest memory, likewise. */
  async writeMemory(address: number, source: Uint8Array): Promise<void> {
    const length = this.client.maxTransfer;
    for (let done = 0; done < source.length; done += length) {
      const part = source.subarray(done, done + length);
      const head = transferHead(address + done, part.length);
      await this.explained(this.client.request(Command.DMA_WRITE, [head, part], () => {}));
    }
  }

  reset(): Promise<void> {
    return this.client.reset();
  }
}

/** @throws DEVSTATE_E_PROTOCOL */
function requireFew(ranges: number): void {
  if (ranges > DEFAULT_MAX_DMA_MAPS)
    throw new DevstateError('DEVSTATE_E_PROTOCOL', 'the server tells of more DMA ranges than there can be');
}

/** What a peer offers, as negotiation takes it. */
function offerOf(offer: WireFormatOffer): FormatOffer {
  const { flags, limit, estimate, features } = offer;
  return {
    uuid: uuidFromBytes(offer.uuid),
    name: offer.name,
    version: { major: offer.major, minor: offer.minor },
    save: (flags & FormatFlag.SAVE) !== 0,
    load: (flags & FormatFlag.LOAD) !== 0,
    fidelity: (flags & FormatFlag.PARTIAL) !== 0 ? 'partial' : 'complete',
    features: formatFeatureNames(features),
    ...(limit === 0 ? {} : { limit }),
    ...(estimate === undefined ? {} : { estimate }),
  };
}

function transferHead(address: number, count: number): Uint8Array {
  const head = new Uint8Array(transferLength);
  encodeDmaTransfer(viewOf(head), 0, { address, count }, 64);
  return head;
}
