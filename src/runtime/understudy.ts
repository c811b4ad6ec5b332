// SPDX-License-Identifier: Apache-2.0
/**
 * The device as the next VMM sees it while the first one has it: one that was just reset. Its memory and eventfds are
 * taken down, its config writes go to a config space of its own, so that it finds the sizes of BARs, its resets are
 * answered. Nothing of it reaches the device until the two change places.
 */

import type { DmaPeer, ManagementPort, ServedIrq, ServedRegion, Understudy } from '../server/index.js';
import type { Fd } from '../transport/index.js';
import {
  type DmaMapRequest,
  type DmaUnmapRequest,
  Errno,
  PciRegion,
  RequestError,
  type SetIrqs,
} from '../wire/index.js';
import type { ConfigAccess } from './config-access.js';
import type { VmmTables } from './vmm-tables.js';

/** What all VMMs of a device learn alike. */
export interface DeviceFace {
  readonly name: string;
  readonly flags: number;
  readonly regions: readonly (ServedRegion | undefined)[];
  readonly irqs: readonly ServedIrq[];
  readonly management: ManagementPort;
}

export class DeviceUnderstudy implements Understudy {
  readonly name: string;
  readonly flags: number;
  readonly regions: readonly (ServedRegion | undefined)[];
  readonly irqs: readonly ServedIrq[];
  readonly management: ManagementPort;
  readonly absorbed = { resets: 0, configWrites: 0 };

  readonly #tables: VmmTables;
  readonly #config: ConfigAccess;
  readonly #exchange: () => void;
  readonly #holdIntx: (held: boolean) => void;

  /**
   * @param tables held, and assigned to no VMM yet
   * @param config fresh
   * @param exchange has the device and `tables` change places
   * @param holdIntx keeps the device from raising INTx, or no more
   */
  constructor(
    face: DeviceFace,
    tables: VmmTables,
    config: ConfigAccess,
    exchange: () => void,
    holdIntx: (held: boolean) => void,
  ) {
    this.name = face.name;
    this.flags = face.flags;
    this.regions = face.regions;
    this.irqs = face.irqs;
    this.management = face.management;
    this.#tables = tables;
    this.#config = config;
    this.#exchange = exchange;
    this.#holdIntx = holdIntx;
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

  readRegion(region: number, offset: number, target: Uint8Array): void {
    requireConfig(region);
    this.#config.read(offset, target);
  }

  writeRegion(region: number, offset: number, data: Uint8Array): void {
    requireConfig(region);
    this.absorbed.configWrites++;
    this.#config.write(offset, data);
    if (this.#config.takeFunctionLevelReset()) this.reset();
  }

  reset(): void {
    this.absorbed.resets++;
    this.#config.reset();
  }

  connected(peer: DmaPeer): void {
    this.#tables.peer = peer;
    this.#holdIntx(true);
  }

  async disconnected(): Promise<void> {
    this.#tables.peer = undefined;
    this.#holdIntx(false);
    await this.#tables.clear();
  }

  /** It has no device to migrate. */
  openMigration(): undefined {
    return undefined;
  }

  exchange(): void {
    this.#exchange();
    this.#holdIntx(false);
  }
}

/** A guest whose CPUs run makes other accesses, and there is none. */
function requireConfig(region: number): void {
  if (region !== PciRegion.CONFIG)
    throw new RequestError(Errno.EBUSY, 'another VMM has the device; this one may look at its config space');
}
