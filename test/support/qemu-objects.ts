// SPDX-License-Identifier: Apache-2.0
/** What a model of QEMU shows of itself: its object model (QOM), its PCI bus, its character devices. */

import type { PciFunction } from './pci-function.js';
import { CONFIG_ADDRESS, CONFIG_DATA, ECAM, ECAM_BYTES } from './qemu-accesses.js';
import { type Arguments, Refusal } from './qemu-hosts.js';

interface ChardevArguments {
  readonly id: string;
  readonly backend: {
    readonly type: string;
    readonly data: { readonly addr?: { readonly type: string; readonly data: { readonly str?: string } } };
  };
}

/** Host bridges: a name in the machine, a type, and the root bus. */
const BRIDGES = {
  ports: { name: 'q35', type: 'q35-pcihost', bus: 'pcie.0' },
  ecam: { name: 'gpex', type: 'gpex-pcihost', bus: 'pcie.0' },
} as const;

export class QemuObjects {
  readonly chardevs = new Map<string, string>([['compat_monitor0', 'unix:/monitor,server=on']]);
  readonly objects = new Map<string, string>([['ram0', 'memory-backend-memfd']]);
  /** Where the qtest server listens, as its socket says. */
  qtestPath = '';
  /** A descriptor that was given under a name becomes a server. */
  listen: (name: string) => void = () => {};
  readonly #way: 'ecam' | 'ports';
  readonly #devices: () => readonly PciFunction[];

  /** @param devices that are there now */
  constructor(way: 'ecam' | 'ports', devices: () => readonly PciFunction[]) {
    this.#way = way;
    this.#devices = devices;
  }

  queryPci(): object[] {
    const listed = this.#devices().map(({ place: { id, slot }, vendorId, deviceId }) => ({
      ...{ bus: 0, slot, function: 0, qdev_id: id, irq_pin: 1 },
      id: { vendor: vendorId, device: deviceId },
    }));
    return [{ bus: 0, devices: listed }];
  }

  queryChardev(): object[] {
    return [...this.chardevs].map(([label, filename]) => ({ label, filename }));
  }

  addChardev(args: Arguments): void {
    const { id, backend } = args as unknown as ChardevArguments;
    if (this.chardevs.has(id)) throw new Refusal(`Chardev '${id}' already exists`);
    const { addr } = backend.data;
    if (addr?.type === 'fd') {
      this.listen(String(addr.data.str));
      this.chardevs.set(id, `disconnected:unix:${this.qtestPath},server=on`);
    } else this.chardevs.set(id, backend.type);
  }

  removeChardev({ id }: Arguments): void {
    if (!this.chardevs.delete(String(id))) throw new Refusal(`Chardev '${id}' not found`);
  }

  addObject({ 'qom-type': type, id, chardev }: Arguments): void {
    if (type === 'qtest' && !this.chardevs.has(String(chardev)))
      throw new Refusal(`Cannot find character device '${chardev}'`);
    if (this.objects.has(String(id)))
      throw new Refusal(`attempt to add duplicate property '${id}' to object (type 'container')`);
    this.objects.set(String(id), String(type));
  }

  /** What is at a path. */
  children(path: string): { name: string; type: string }[] {
    const child = (name: string, type: string) => ({ name, type: `child<${type}>` });
    const bridge = BRIDGES[this.#way];
    if (path === '/objects') return [...this.objects].map(([name, type]) => child(name, type));
    if (path === '/machine') return [child(bridge.name, bridge.type), child('peripheral', 'container')];
    if (path === '/machine/unattached' || path === '/machine/peripheral-anon') return [];
    if (path === '/machine/peripheral')
      return this.#devices().map(({ place }) => child(place.id, 'vfio-user-pci'));
    if (path === `/machine/${bridge.name}`)
      return this.#regions.map(({ name }) => child(name, 'memory-region'));
    const device = this.#at(path);
    if (device === undefined) throw new Refusal(`Device '${path}' not found`, 'DeviceNotFound');
    const socket = device.place.socket.replaceAll('/', '\\x2f');
    return [child(`vfio-user:${socket} base BAR 0[0]`, 'memory-region'), { name: 'addr', type: 'int32' }];
  }

  property(path: string, property: string): unknown {
    const bridge = `/machine/${BRIDGES[this.#way].name}`;
    const region = this.#regions.find(({ name }) => path === `${bridge}/${name}`);
    const device = this.#at(path);
    const isKnown =
      ['/machine', '/machine/unattached/device[0]'].includes(path) || path.startsWith('/objects/');
    if (region === undefined && device === undefined && !isKnown)
      throw new Refusal(`Device '${path}' not found`, 'DeviceNotFound');
    const found: Record<string, unknown> = {
      ...(region === undefined ? {} : { container: region.container, addr: region.addr, size: region.size }),
      ...(device === undefined
        ? {}
        : { addr: device.place.slot << 3, parent_bus: `${bridge}/${BRIDGES[this.#way].bus}` }),
      ...(path === '/machine' ? { type: 'pc-q35-11.1-machine', 'aux-ram-share': true } : {}),
      ...(path === '/objects/ram0' ? { type: 'memory-backend-memfd' } : {}),
      ...(path === '/machine/unattached/device[0]' ? { type: 'max-x86_64-cpu' } : {}),
    };
    if (property in found) return found[property];
    throw new Refusal(`Property '${path}.${property}' not found`);
  }

  #at(path: string): PciFunction | undefined {
    return this.#devices().find(({ place }) => path === `/machine/peripheral/${place.id}`);
  }

  get #regions(): { name: string; container: string; addr: number; size: number }[] {
    const io = '/machine/unattached/io[0]';
    if (this.#way === 'ports')
      return [
        { name: 'pci-conf-idx[0]', container: io, addr: CONFIG_ADDRESS, size: 4 },
        { name: 'pci-conf-data[0]', container: io, addr: CONFIG_DATA, size: 4 },
      ];
    const memory = '/machine/unattached/system[0]';
    return [{ name: 'pcie-ecam[0]', container: memory, addr: ECAM, size: ECAM_BYTES }];
  }
}
