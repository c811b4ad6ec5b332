// SPDX-License-Identifier: Apache-2.0
/**
 * Makes a `Device` servable: declares its regions and interrupts, routes accesses, keeps the DMA ranges and eventfds,
 * and carries its migrations out.
 */

import { CONFIG_SPACE_SIZE, type Device, type DeviceHost, type HostJournal } from '../device/index.js';
import { DevstateError } from '../errors.js';
import type { SlotSpec } from '../journal/index.js';
import { limitRepeats } from '../logging/index.js';
import type {
  CrashJournal,
  DmaPeer,
  HandoffPort,
  ManagementPort,
  MigrationPort,
  RecoveryPort,
  ServedDevice,
  ServedIrq,
  ServedRegion,
  Understudy,
} from '../server/index.js';
import type { Fd } from '../transport/index.js';
import {
  DeviceInfoFlag,
  DmaMapFlag,
  type DmaMapRequest,
  type DmaUnmapRequest,
  IrqInfoFlag,
  PciIrq,
  PciRegion,
  RegionInfoFlag,
  type SetIrqs,
} from '../wire/index.js';
import { ConfigAccess } from './config-access.js';
import { CrashRecords, journalSlots } from './crash-records.js';
import { dmaFiles } from './dma-files.js';
import { EnginePort, type ServedProtocols } from './engine-port.js';
import { type StateOffer, stateOffer } from './format-choice.js';
import { DeviceHandoff } from './handoff.js';
import { journalOfNothing } from './host-journal.js';
import { DeviceImages } from './images.js';
import { InterruptTable } from './interrupt-table.js';
import { MigrationEngine } from './migration-engine.js';
import { type MigrationRegionOptions, requireRegionOptions } from './migration-region.js';
import { SharedFiles } from './shared-files.js';
import { DeviceUnderstudy } from './understudy.js';
import { VmmTables } from './vmm-tables.js';

export interface RuntimeOptions {
  /** Short name for log lines. */
  readonly name: string;
  readonly log?: DeviceHost['log'];
  /** Formats to offer, see `stateOffer`; default: all. */
  readonly formats?: readonly string[];
  /** The migration protocols that are served: the commands of v2, the region of v1, or both. Default: v2. */
  readonly migration?: MigrationProtocols;
  /** The v1 migration region. */
  readonly migrationRegion?: MigrationRegionOptions;
  /** Keeps the device's state for a successor after a crash; opened for `DeviceRuntime.journalSlots`. */
  readonly crash?: CrashJournal | undefined;
}

export type MigrationProtocols = 'v1' | 'v2' | 'both';

const READ_WRITE = RegionInfoFlag.READ | RegionInfoFlag.WRITE;

export class DeviceRuntime implements ServedDevice {
  readonly name: string;
  readonly flags = DeviceInfoFlag.PCI | DeviceInfoFlag.RESET;
  readonly regions: readonly (ServedRegion | undefined)[];
  readonly irqs: readonly ServedIrq[];
  readonly management: ManagementPort;
  readonly handoff: HandoffPort;
  readonly recovery: RecoveryPort | undefined;

  readonly #device: Device;
  readonly #config: ConfigAccess;
  readonly #crash: CrashJournal | undefined;
  readonly #records: CrashRecords | undefined;
  readonly #files: SharedFiles;
  readonly #tables: VmmTables;
  readonly #makeInterrupts: () => InterruptTable;
  readonly #engine: MigrationEngine;
  readonly #offer: StateOffer;
  readonly #protocols: ServedProtocols;

  constructor(device: Device, options: RuntimeOptions) {
    this.name = options.name;
    this.#device = device;
    this.#config = new ConfigAccess(device.config);
    this.#crash = options.crash;
    this.#files = new SharedFiles(options.crash?.store);
    this.#offer = stateOffer(device, options.formats);
    this.#protocols = servedProtocols(options, this.#offer);
    this.regions = declareRegions(device);
    const { intx, msi, msix } = device.interruptCounts;
    // ERR and REQ: declared, as every PCI device has them, and never raised by a software device.
    const counts = [intx === false ? 0 : 1, msi, msix, 1, 1];
    const edgeIntx = intx === 'edge';
    this.irqs = counts.map((count, index) => ({ flags: irqFlags(index, edgeIntx), count }));
    this.#makeInterrupts = () => new InterruptTable(counts, { edgeIntx });
    this.#tables = new VmmTables(this.#makeInterrupts(), this.#files, options.crash);
    const { memory, interrupts } = this.#tables;
    this.#engine = new MigrationEngine(device, memory, interrupts, this.#offer);
    this.management = this.#createManagement();
    this.handoff = new DeviceHandoff({
      device,
      memory,
      interrupts,
      engine: this.#engine,
      offer: this.#offer,
      files: this.#files,
    });
    const log = limitRepeats(options.log);
    device.attach({
      memory,
      messages: {
        read: async (address, target) => this.#tables.requirePeer().read(address, target),
        write: async (address, source) => this.#tables.requirePeer().write(address, source),
      },
      interrupts,
      journal: this.#hostJournal(),
      log: (level, message) => log(level, message),
    });
    if (this.#crash === undefined) return;
    this.#records = new CrashRecords({
      device,
      journal: requireJournal(device),
      crash: this.#crash,
      tables: this.#tables,
      engine: this.#engine,
      files: this.#files,
      management: this.management,
    });
    this.recovery = this.#records;
  }

  /** What a crash journal must have room for. @throws DEVSTATE_E_USAGE for a device that cannot be kept in one */
  static journalSlots(device: Device): SlotSpec[] {
    return journalSlots(requireJournal(device));
  }

  #hostJournal(): HostJournal {
    const { memory } = this.#tables;
    const transactions = this.#crash?.transactions;
    if (transactions === undefined) return journalOfNothing(memory);
    return {
      keeps: true,
      begin: () => transactions.begin(),
      end: () => transactions.end(),
      transaction: (work) => transactions.run(work),
      write: (address, bytes) => transactions.write(address, bytes),
    };
  }

  #createManagement(): ManagementPort {
    const { memory } = this.#tables;
    const device = this.#device;
    const engine = this.#engine;
    const changed = (): void => this.#records?.noteChanged();
    const interrupts = (): InterruptTable => this.#tables.interrupts;
    let note: Uint8Array = new Uint8Array(0);
    return {
      get resets() {
        return engine.resets;
      },
      get intxAssigned() {
        return interrupts().intxAssigned;
      },
      get note() {
        return note;
      },
      set note(bytes) {
        note = bytes;
        changed();
      },
      images: device.files?.images === undefined ? undefined : new DeviceImages(device.files.images),
      describe: () => JSON.stringify(describe(device, this.#offer)),
      dmaMaps: ({ first, most }) =>
        memory.regions.slice(first, first + most).map((region) => ({
          address: region.address,
          size: region.length,
          flags: (region.readable ? DmaMapFlag.READ : 0) | (region.writable ? DmaMapFlag.WRITE : 0),
        })),
      dmaFiles: (limit, asked) => dmaFiles(memory, limit, asked),
      readMemory: (address, target) => memory.read(address, target),
      writeMemory: (address, source) => memory.write(address, source),
    };
  }

  dmaMap(request: DmaMapRequest, fd: Fd | undefined): void {
    this.#tables.dmaMap(request, fd);
  }

  dmaUnmap(request: DmaUnmapRequest): void | Promise<void> {
    return this.#tables.dmaUnmap(request);
  }

  setIrqs(request: SetIrqs, data: Uint8Array, fds: readonly Fd[]): void {
    this.#tables.setIrqs(request, data, fds);
  }

  readRegion(region: number, offset: number, target: Uint8Array): void | Promise<void> {
    if (region !== PciRegion.CONFIG) return this.#device.readRegion(region, offset, target);
    this.#device.config.setInterruptStatus(this.#tables.interrupts.intxAsserted);
    this.#config.read(offset, target);
  }

  writeRegion(region: number, offset: number, data: Uint8Array): void | Promise<void> {
    if (region !== PciRegion.CONFIG) return this.#device.writeRegion(region, offset, data);
    this.#config.write(offset, data);
    this.#records?.configChanged();
    // A function level reset is the same for every device, and ends a migration like any other reset.
    if (this.#config.takeFunctionLevelReset()) return this.#engine.reset('requested');
    this.#device.configWritten?.(offset, data.length);
  }

  reset(): Promise<void> {
    return this.#engine.reset('requested');
  }

  connected(peer: DmaPeer): void {
    this.#tables.peer = peer;
    this.#engine.vmmConnected(peer);
  }

  async disconnected(): Promise<void> {
    this.#tables.peer = undefined;
    try {
      await this.#engine.vmmLeft();
    } finally {
      // Whatever became of the device, the VMM's eventfds and memory are released.
      await this.#tables.clear();
    }
  }

  openUnderstudy(): Understudy {
    const tables = new VmmTables(this.#makeInterrupts(), this.#files);
    tables.interrupts.hold();
    const exchange = (): void => {
      this.#engine.requireStill();
      this.#tables.exchange(tables);
      this.#engine.vmmChanged(this.#tables.peer);
    };
    const holdIntx = (held: boolean): void => this.#tables.interrupts.holdIntx(held);
    return new DeviceUnderstudy(this, tables, ConfigAccess.fresh(this.#device.config), exchange, holdIntx);
  }

  openMigration(): MigrationPort {
    return new EnginePort(this.#engine, this.#protocols);
  }
}

/** @throws DevstateError DEVSTATE_E_USAGE */
function requireJournal({ journal, bars }: Device): NonNullable<Device['journal']> {
  if (journal !== undefined && bars.every(({ memory }) => memory === undefined)) return journal;
  const why =
    journal === undefined ? 'it does not say what is to be kept of it' : 'the VMM maps memory of it';
  throw new DevstateError(
    'DEVSTATE_E_USAGE',
    `this device cannot be kept in a crash journal: ${why}; start it without \`devstate run\``,
  );
}

/** @throws DevstateError DEVSTATE_E_USAGE for what cannot be served */
function servedProtocols(
  { migration = 'v2', migrationRegion = {} }: RuntimeOptions,
  { formats, raw }: StateOffer,
): ServedProtocols {
  if (migration === 'v2') return { v2: true };
  if (formats.length === 0 && raw === undefined) {
    const message = 'migration v1 has no values, only streams: let the device offer a format, or serve v2';
    throw new DevstateError('DEVSTATE_E_USAGE', message);
  }
  return { v2: migration === 'both', region: requireRegionOptions(migrationRegion) };
}

function declareRegions(device: Device): (ServedRegion | undefined)[] {
  const regions = new Array<ServedRegion | undefined>(PciRegion.COUNT).fill(undefined);
  for (const { index, size, memory } of device.bars)
    regions[index] = { size, flags: READ_WRITE, ...(memory === undefined ? {} : { memory }) };
  regions[PciRegion.CONFIG] = { size: CONFIG_SPACE_SIZE, flags: READ_WRITE };
  return regions;
}

function irqFlags(index: number, edgeIntx: boolean): number {
  if (index === PciIrq.INTX && !edgeIntx)
    return IrqInfoFlag.EVENTFD | IrqInfoFlag.MASKABLE | IrqInfoFlag.AUTOMASKED;
  return IrqInfoFlag.EVENTFD;
}

/** What DEVSTATE_DESCRIPTION answers. */
function describe(device: Device, { formats }: StateOffer): unknown {
  return {
    model: device.model,
    producer: device.producer,
    formats: formats.map(({ uuid, name, version }) => ({ uuid, name, version })),
    pci: {
      vendorId: device.config.bytes[0]! | (device.config.bytes[1]! << 8),
      deviceId: device.config.bytes[2]! | (device.config.bytes[3]! << 8),
    },
  };
}
