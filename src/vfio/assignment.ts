// SPDX-License-Identifier: Apache-2.0
/**
 * Devices with all that belongs to them, as one process has them and can hand them to the next: an address space, groups,
 * devices, eventfds, memory, DMA mappings, and the lease that says which process operates them.
 *
 *     const assignment = VfioAssignment.openGroups(['1']);
 *     const memory = assignment.addMemory('ram', 64 << 20);
 *     assignment.mapDma({ iova: 0, size: memory.size, memory, offset: 0, read: true, write: true });
 *     const device = assignment.device('0000:00:03.0');
 *     const [eventfd] = device.arm(PciIrq.MSI, 1);
 *     device.writeU32(PciRegion.BAR0, 0x04, 1);
 */

import { DevstateError } from '../errors.js';
import {
  type Bundle,
  type BundleEntry,
  FdKind,
  Lease,
  type ProcessIdentity,
  parseHandoff,
} from '../handoff/index.js';
import { check, native } from '../native/index.js';
import { Fd } from '../transport/index.js';
import { AssignedDevice, deviceFdName } from './assigned-device.js';
import { type AssignmentDocument, assignmentDocument } from './assignment-document.js';
import { Cdev } from './cdev.js';
import { Container } from './container.js';
import { VfioDevice } from './device.js';
import {
  ContainerSpace,
  type DmaMapping,
  type DmaSpace,
  IommufdSpace,
  type Rebinding,
  SPACE_NAME,
} from './dma-space.js';
import { Group, type GroupId } from './group.js';
import { Iommufd } from './iommufd.js';
import { SharedMemory } from './shared-memory.js';
import { devicesOfGroup } from './sysfs.js';

const groupName = (id: GroupId): string => `group:${id}`;
const memoryName = (name: string): string => `memory:${name}`;
const BELL_NAME = 'bell';

/** What an assignment consists of; the assignment that is made of it gives it all away. */
interface Parts {
  readonly space: DmaSpace;
  readonly groups: Group[];
  readonly devices: readonly { device: VfioDevice; group: GroupId | null }[];
}

export class VfioAssignment {
  #space: DmaSpace;
  readonly #groups: readonly Group[];
  readonly #devices = new Map<string, AssignedDevice>();
  readonly #memory = new Map<string, SharedMemory>();
  #dma: DmaMapping[] = [];
  /** Undefined for a receiver that has not taken over. */
  #lease: Lease | undefined;
  #bell: Fd | undefined;

  private constructor({ space, groups, devices }: Parts, lease: Lease | undefined) {
    this.#space = space;
    this.#groups = groups;
    this.#lease = lease;
    this.#setDevices(devices);
  }

  #setDevices(devices: Parts['devices']): void {
    this.#devices.clear();
    for (const { device, group } of devices) this.#addDevice(device, group);
  }

  #addDevice(device: VfioDevice, group: GroupId | null): AssignedDevice {
    const assigned = new AssignedDevice(device, group, this.requireLease);
    this.#devices.set(device.name, assigned);
    return assigned;
  }

  /**
   * Opens groups, in one container, and all their devices that VFIO has. The first process to do so enables and resets
   * them; it holds the lease. @throws DEVSTATE_E_VFIO_BUSY, DEVSTATE_E_VFIO_ACCESS, DEVSTATE_E_VFIO_GROUP
   */
  static openGroups(ids: readonly GroupId[]): VfioAssignment {
    const groups: Group[] = [];
    try {
      for (const id of ids) groups.push(Group.open(id));
      return new VfioAssignment(inContainer(groups), Lease.create(1));
    } catch (error) {
      for (const group of groups) group.close();
      throw error;
    }
  }

  /** Opens devices by files of their own (`vfio0`, or a path), in one address space of an iommufd. @throws likewise */
  static openCdevs(paths: readonly string[]): VfioAssignment {
    const iommufd = Iommufd.open();
    try {
      return new VfioAssignment(inIommufd(iommufd, paths), Lease.create(1));
    } catch (error) {
      iommufd.close();
      throw error;
    }
  }

  /** Whether this process may operate the devices. */
  get isHeld(): boolean {
    return this.#lease?.isHeld ?? false;
  }

  /** @throws DEVSTATE_E_VFIO_LEASE unless it may */
  readonly requireLease = (): void => {
    if (this.isHeld) return;
    const owner = this.#lease?.owner;
    const who = owner === undefined ? 'another process' : `process ${owner.pid}`;
    const message = `${who} has the devices, or they are on their way: this process must not operate them`;
    throw new DevstateError('DEVSTATE_E_VFIO_LEASE', message);
  };

  /** Changes hands with the devices. @throws DEVSTATE_E_VFIO_LEASE in a receiver that has not taken over */
  get lease(): Lease {
    if (this.#lease === undefined) this.requireLease();
    return this.#lease as Lease;
  }

  /** For a lender: an eventfd that the process that takes the devices over signals, then and from then on. It is this object's. */
  get bell(): Fd {
    this.#bell ??= new Fd(check(native.eventfdCreate(0), 'make an eventfd'));
    return this.#bell;
  }

  get deviceNames(): string[] {
    return [...this.#devices.keys()];
  }

  get groupIds(): GroupId[] {
    return this.#groups.map(({ id }) => id);
  }

  /** The addresses that the devices see. Mapping by it goes past this object. */
  get space(): DmaSpace {
    return this.#space;
  }

  /** @throws DEVSTATE_E_VFIO_GROUP when there is none of that name */
  device(name: string): AssignedDevice {
    const device = this.#devices.get(name);
    if (device !== undefined) return device;
    const message = `there is no device ${name} here; there are ${this.deviceNames.join(', ') || 'none'}`;
    throw new DevstateError('DEVSTATE_E_VFIO_GROUP', message);
  }

  /** New memory for devices to reach. It goes over by its name. */
  addMemory(name: string, size: number): SharedMemory {
    this.requireLease();
    if (this.#memory.has(name))
      throw new DevstateError('DEVSTATE_E_VFIO', `there is memory of the name ${name}`);
    const memory = SharedMemory.create(name, size);
    this.#memory.set(name, memory);
    return memory;
  }

  /** @throws DEVSTATE_E_VFIO when there is none of that name */
  memory(name: string): SharedMemory {
    const memory = this.#memory.get(name);
    if (memory === undefined)
      throw new DevstateError('DEVSTATE_E_VFIO', `there is no memory of the name ${name}`);
    return memory;
  }

  /** The next process has no more of it. @throws DEVSTATE_E_VFIO when it is mapped for DMA */
  removeMemory(name: string): void {
    this.requireLease();
    const memory = this.memory(name);
    if (this.#dma.some((mapping) => mapping.memory === memory))
      throw new DevstateError('DEVSTATE_E_VFIO', `the memory ${name} is mapped for DMA: unmap it first`);
    this.#memory.delete(name);
    memory.close();
  }

  get dmaMappings(): readonly DmaMapping[] {
    return this.#dma;
  }

  /** Bytes that are mapped for DMA, and locked therefore. */
  get lockedBytes(): number {
    return this.#dma.reduce((sum, { size }) => sum + size, 0);
  }

  /** Lets the devices reach a part of memory. BLOCKS while its pages are pinned. @throws DEVSTATE_E_VFIO_MEMLOCK */
  mapDma(mapping: DmaMapping): void {
    this.requireLease();
    this.#space.map(mapping);
    this.#dma.push(mapping);
  }

  /** Ends the mappings that lie wholly within the range. @returns bytes that were unmapped */
  unmapDma(iova: number, size: number): number {
    this.requireLease();
    const unmapped = this.#space.unmap(iova, size);
    const inside = (mapping: DmaMapping): boolean =>
      mapping.iova >= iova && mapping.iova + mapping.size <= iova + size;
    this.#dma = this.#dma.filter((mapping) => !inside(mapping));
    return unmapped;
  }

  // To another process, and from one

  /** @throws DEVSTATE_E_VFIO_REBIND when the mappings could not go over */
  requireMovable(): void {
    this.#space.requireMovable(this.#dma);
  }

  /** What goes over; from now on the addresses of mappings belong to no process, and DMA continues. The fds stay this object's. */
  release(application: unknown): { entries: BundleEntry[]; document: AssignmentDocument } {
    const document = this.#describe(application);
    this.#space.release(this.#dma);
    return { entries: this.#entries(), document };
  }

  /** It stays here after {@link release}. */
  keep(): void {
    this.#space.keep(this.#dma);
  }

  #entries(): BundleEntry[] {
    const groups = this.#groups.map(({ id, fd }) => ({ kind: FdKind.VFIO_GROUP, name: groupName(id), fd }));
    const memory = [...this.#memory.values()].map(({ name, fd }) => ({
      kind: FdKind.MEMORY,
      name: memoryName(name),
      fd,
    }));
    const devices = [...this.#devices.values()].flatMap((device) => device.entries());
    const bell = this.#bell === undefined ? [] : [{ kind: FdKind.EVENTFD, name: BELL_NAME, fd: this.#bell }];
    return [...this.#space.entries(), ...groups, ...devices, ...memory, ...bell];
  }

  #describe(application: unknown): AssignmentDocument {
    const space = this.#space;
    return {
      version: 1,
      space: space instanceof IommufdSpace ? { kind: 'iommufd', ioas: space.ioas } : { kind: 'container' },
      groups: this.groupIds,
      devices: [...this.#devices.values()].map((device) => device.describe()),
      memory: [...this.#memory.values()].map(({ name, size }) => ({ name, size })),
      dma: this.#dma.map(({ memory, iova, size, offset, read, write }) => ({
        iova,
        size,
        memory: memory.name,
        offset,
        read,
        write,
      })),
      bell: this.#bell !== undefined,
      application,
    };
  }

  /**
   * Takes all that a bundle's document names out of it. Does nothing with it but make sure that it is as it is described,
   * and may not be operated before {@link rebind}.
   * @throws DEVSTATE_E_HANDOFF_BUNDLE, DEVSTATE_E_VFIO_STATE, having closed what it took
   */
  static adopt(bundle: Bundle): { assignment: VfioAssignment; application: unknown } {
    const document = parseHandoff(assignmentDocument, bundle.document, "the assignment's document");
    const { space, groups, devices, application } = document;
    const taken = space.kind === 'container' ? FdKind.VFIO_CONTAINER : FdKind.IOMMUFD;
    const spaceFd = bundle.take(SPACE_NAME, taken);
    const assignment = new VfioAssignment(
      {
        space:
          space.kind === 'container'
            ? new ContainerSpace(new Container(spaceFd))
            : new IommufdSpace(new Iommufd(spaceFd), space.ioas),
        groups: [],
        devices: [],
      },
      undefined,
    );
    try {
      for (const id of groups)
        (assignment.#groups as Group[]).push(new Group(id, bundle.take(groupName(id), FdKind.VFIO_GROUP)));
      for (const device of devices) {
        const fd = bundle.take(deviceFdName(device.name), FdKind.VFIO_DEVICE);
        const assigned = assignment.#addDevice(new VfioDevice(device.name, fd), device.group);
        assigned.adoptVectors(device, (name) => bundle.take(name, FdKind.EVENTFD));
        assigned.requireState(device);
      }
      assignment.#adoptMemory(document, bundle);
      if (document.bell) assignment.#bell = bundle.take(BELL_NAME, FdKind.EVENTFD);
      return { assignment, application };
    } catch (error) {
      assignment.close();
      throw error;
    }
  }

  #adoptMemory({ memory, dma }: AssignmentDocument, bundle: Bundle): void {
    for (const { name } of memory)
      this.#memory.set(name, new SharedMemory(name, bundle.take(memoryName(name), FdKind.MEMORY)));
    this.#dma = dma.map(({ memory: name, ...mapping }) => {
      const memory = this.memory(name);
      if (mapping.offset + mapping.size <= memory.size) return { ...mapping, memory };
      const message = `the DMA mapping at ${mapping.iova} leaves its memory ${name}`;
      throw new DevstateError('DEVSTATE_E_HANDOFF_BUNDLE', message);
    });
  }

  /** The lease is this process's: so is the rest, from now on. Takes the lease. Does not fail: DMA continues in any case. */
  rebind(lease: Lease): Rebinding {
    this.#lease?.close();
    this.#lease = lease;
    if (this.#bell !== undefined) native.eventfdSignal(this.#bell.number);
    return this.#space.rebind(this.#dma);
  }

  /**
   * For the process that lent the devices, and has their files still, when the one that had them has ended: takes the
   * lease back, ends every mapping, and opens the devices anew, which resets them. For a device with a file of its own that
   * takes the right to open it once more; a group is open still.
   * @returns false when the lease has changed hands meanwhile
   */
  reclaim(dead: ProcessIdentity): boolean {
    if (!this.lease.reclaim(dead)) return false;
    const names = this.deviceNames;
    for (const device of this.#devices.values()) device.close();
    for (const memory of this.#memory.values()) memory.close();
    this.#devices.clear();
    this.#memory.clear();
    this.#dma = [];
    const { space, devices } =
      this.#space instanceof IommufdSpace ? reopen(this.#space, names) : this.#reopenGroups();
    this.#space = space;
    this.#setDevices(devices);
    return true;
  }

  #reopenGroups(): Parts {
    this.#space.close();
    for (const group of this.#groups) if (group.status().hasContainer) group.unsetContainer();
    return inContainer(this.#groups);
  }

  /** Closes all of it. What another process has continues there; with the last one the devices are disabled. */
  close(): void {
    for (const device of this.#devices.values()) device.close();
    for (const memory of this.#memory.values()) memory.close();
    for (const group of this.#groups) group.close();
    this.#space.close();
    this.#bell?.close();
    this.#lease?.close();
  }
}

/** A new container with the groups, and their devices. */
function inContainer(groups: readonly Group[]): Parts {
  const container = Container.open();
  const devices: { device: VfioDevice; group: GroupId }[] = [];
  try {
    for (const group of groups) group.setContainer(container);
    if (groups.length > 0) container.setIommu();
    for (const group of groups)
      for (const name of devicesOfGroup(group.id))
        devices.push({ device: group.openDevice(name), group: group.id });
    return { space: new ContainerSpace(container), groups: [...groups], devices };
  } catch (error) {
    for (const { device } of devices) device.close();
    container.close();
    throw error;
  }
}

/** Devices that are opened by files of their own, in a new address space of an iommufd. */
function inIommufd(iommufd: Iommufd, paths: readonly string[]): Parts {
  const opened: Cdev[] = [];
  try {
    for (const path of paths) {
      const cdev = Cdev.open(path);
      opened.push(cdev);
      cdev.bind(iommufd);
    }
    const ioas = iommufd.allocIoas();
    for (const cdev of opened) cdev.attach(ioas);
    const devices = opened.map((device) => ({ device, group: null }));
    return { space: new IommufdSpace(iommufd, ioas), groups: [], devices };
  } catch (error) {
    for (const cdev of opened) cdev.close();
    throw error;
  }
}

/** Opens devices that have been closed once more. The mappings of their address space end. */
function reopen({ iommufd, ioas }: IommufdSpace, names: readonly string[]): Parts {
  iommufd.destroy(ioas);
  return inIommufd(iommufd, names);
}
