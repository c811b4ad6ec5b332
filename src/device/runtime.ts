// SPDX-License-Identifier: Apache-2.0
/**
 * Makes a `Device` servable: declares its regions and interrupts, routes accesses, keeps the DMA ranges and eventfds,
 * and carries its migrations out.
 */

import { DevstateError } from '../errors.js';
import type {
  DmaPeer,
  HandoffPort,
  ManagementPort,
  MigrationPort,
  ServedDevice,
  ServedIrq,
  ServedRegion,
} from '../server/index.js';
import type { Fd } from '../transport/index.js';
import {
  DEFAULT_MAX_DMA_MAPS,
  DeviceInfoFlag,
  DmaMapFlag,
  type DmaMapRequest,
  DmaUnmapFlag,
  type DmaUnmapRequest,
  Errno,
  IrqInfoFlag,
  IrqSetFlag,
  PciIrq,
  PciRegion,
  RegionInfoFlag,
  RequestError,
  type SetIrqs,
} from '../wire/index.js';
import { openBacking } from './backing.js';
import type { Device, DeviceHost } from './device.js';
import type { ServedProtocols } from './engine-port.js';
import { EventSignal } from './event-signal.js';
import { type StateOffer, stateOffer } from './format-choice.js';
import { GuestMemory } from './guest-memory.js';
import { DeviceHandoff } from './handoff.js';
import { Interrupts } from './interrupts.js';
import { MigrationEngine } from './migration-engine.js';
import { type MigrationRegionOptions, requireRegionOptions } from './migration-region.js';
import { CONFIG_SPACE_SIZE } from './pci-config.js';
import { SharedFiles } from './shared-files.js';

export interface RuntimeOptions {
  /** Short name for log lines. */
  readonly name: string;
  readonly log?: DeviceHost['log'];
  /** Formats to offer, see `stateOffer`; default: all. */
  readonly formats?: readonly string[];
  /** The migration protocols that are served: the commands of v2, the region of v1, or both. Default: v2. */
  readonly migration?: MigrationProtocols;
  /** Of v1. */
  readonly migrationRegion?: MigrationRegionOptions;
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

  readonly #device: Device;
  readonly #memory = new GuestMemory();
  readonly #files = new SharedFiles();
  readonly #interrupts: Interrupts;
  readonly #engine: MigrationEngine;
  readonly #offer: StateOffer;
  readonly #protocols: ServedProtocols;
  #peer: DmaPeer | undefined;

  constructor(device: Device, options: RuntimeOptions) {
    this.name = options.name;
    this.#device = device;
    this.#offer = stateOffer(device, options.formats);
    this.#protocols = servedProtocols(options, this.#offer);
    this.regions = declareRegions(device);
    const { intx, msi, msix } = device.interruptCounts;
    // ERR and REQ: declared, as every PCI device has them, and never raised by a software device.
    const counts = [intx === false ? 0 : 1, msi, msix, 1, 1];
    const edgeIntx = intx === 'edge';
    this.irqs = counts.map((count, index) => ({ flags: irqFlags(index, edgeIntx), count }));
    this.#interrupts = new Interrupts(counts, { edgeIntx });
    this.#engine = new MigrationEngine(device, this.#memory, this.#interrupts, this.#offer);
    this.management = this.#createManagement();
    this.handoff = new DeviceHandoff({
      device,
      memory: this.#memory,
      interrupts: this.#interrupts,
      engine: this.#engine,
      offer: this.#offer,
      files: this.#files,
    });
    device.attach({
      memory: this.#memory,
      messages: {
        read: async (address, target) => this.#requirePeer().read(address, target),
        write: async (address, source) => this.#requirePeer().write(address, source),
      },
      interrupts: this.#interrupts,
      log: (level, message) => options.log?.(level, message),
    });
  }

  #createManagement(): ManagementPort {
    const memory = this.#memory;
    const device = this.#device;
    return {
      note: new Uint8Array(0),
      describe: () => JSON.stringify(describe(device, this.#offer)),
      dmaMaps: () =>
        memory.regions.map((region) => ({
          address: region.address,
          size: region.length,
          flags: (region.readable ? DmaMapFlag.READ : 0) | (region.writable ? DmaMapFlag.WRITE : 0),
        })),
      readMemory: (address, target) => memory.read(address, target),
      writeMemory: (address, source) => memory.write(address, source),
    };
  }

  #requirePeer(): DmaPeer {
    if (this.#peer === undefined) throw new RequestError(Errno.ENOTCONN, 'no VMM is connected');
    return this.#peer;
  }

  dmaMap(request: DmaMapRequest, fd: Fd | undefined): void {
    const peer = this.#requirePeer();
    if (this.#memory.regions.length >= DEFAULT_MAX_DMA_MAPS) {
      throw new RequestError(Errno.ENOSPC, `more than ${DEFAULT_MAX_DMA_MAPS} DMA ranges`);
    }
    const backing = openBacking(request, fd, peer, this.#files);
    try {
      this.#memory.add({
        address: request.address,
        length: request.size,
        readable: (request.flags & DmaMapFlag.READ) !== 0,
        writable: (request.flags & DmaMapFlag.WRITE) !== 0,
        backing,
      });
    } catch (error) {
      backing.unmap();
      throw error;
    }
  }

  dmaUnmap(request: DmaUnmapRequest): void | Promise<void> {
    if ((request.flags & DmaUnmapFlag.ALL) !== 0) return this.#memory.clear();
    return this.#memory.remove(request.address, request.size);
  }

  setIrqs(request: SetIrqs, data: Uint8Array, fds: readonly Fd[]): void {
    if ((request.flags & IrqSetFlag.DATA_EVENTFD) === 0 && fds.length > 0) {
      throw new RequestError(Errno.EINVAL, 'SET_IRQS carries fds but does not say eventfd');
    }
    const signals = fds.map((fd) => new EventSignal(fd));
    try {
      this.#interrupts.set(request, data, signals);
    } catch (error) {
      for (const signal of signals) signal.close();
      throw error;
    }
  }

  readRegion(region: number, offset: number, target: Uint8Array): void | Promise<void> {
    if (region !== PciRegion.CONFIG) return this.#device.readRegion(region, offset, target);
    this.#device.config.setInterruptStatus(this.#interrupts.intxAsserted);
    this.#device.config.read(offset, target);
  }

  writeRegion(region: number, offset: number, data: Uint8Array): void | Promise<void> {
    if (region !== PciRegion.CONFIG) return this.#device.writeRegion(region, offset, data);
    this.#device.config.write(offset, data);
    // A function level reset is the same for every device, and ends a migration like any other reset.
    if (this.#device.config.takeFunctionLevelReset()) return this.#engine.reset('requested');
    this.#device.configWritten?.(offset, data.length);
  }

  reset(): Promise<void> {
    return this.#engine.reset('requested');
  }

  connected(peer: DmaPeer): void {
    this.#peer = peer;
    this.#engine.vmmConnected(peer);
  }

  async disconnected(): Promise<void> {
    this.#peer = undefined;
    try {
      await this.#engine.vmmLeft();
    } finally {
      // Whatever became of the device, the VMM's eventfds and memory are let go of.
      this.#interrupts.disconnect();
      await this.#memory.clear();
    }
  }

  openMigration(): MigrationPort {
    return this.#engine.open(this.#protocols);
  }
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
