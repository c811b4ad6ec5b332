// SPDX-License-Identifier: Apache-2.0
/** `/dev/vfio/N`: the devices that an IOMMU cannot tell apart, which have one owner therefore. */

import { DevstateError } from '../errors.js';
import { native } from '../native/index.js';
import { Fd } from '../transport/index.js';
import { call, callStruct, vfioError } from './call.js';
import type { Container } from './container.js';
import { VfioDevice } from './device.js';
import { openVfio, VFIO_DIRECTORY } from './open.js';
import { decodeGroupStatus, encodeGroupStatus, GroupFlag, VfioRequest } from './uapi/index.js';

/** Number of a group, or `noiommu-N`. */
export type GroupId = string;

export class Group {
  readonly id: GroupId;
  readonly fd: Fd;

  constructor(id: GroupId, fd: Fd) {
    this.id = id;
    this.fd = fd;
  }

  /**
   * Opens a group, which can be open once: by this file and its duplicates.
   * @throws DEVSTATE_E_VFIO_BUSY, DEVSTATE_E_VFIO_ACCESS, DEVSTATE_E_VFIO_GROUP when there is none or it is not viable
   */
  static open(id: GroupId): Group {
    const group = new Group(id, openVfio(`${VFIO_DIRECTORY}/${id}`));
    if (group.status().viable) return group;
    group.close();
    const message = `group ${id} is not viable: another function of it is bound to a host driver; see "devstate vfio list"`;
    throw new DevstateError('DEVSTATE_E_VFIO_GROUP', message);
  }

  status(): { viable: boolean; hasContainer: boolean } {
    const bytes = encodeGroupStatus();
    callStruct(this.fd.number, VfioRequest.GROUP_GET_STATUS, bytes, `ask for the status of group ${this.id}`);
    const flags = decodeGroupStatus(bytes);
    return {
      viable: (flags & GroupFlag.VIABLE) !== 0,
      hasContainer: (flags & GroupFlag.CONTAINER_SET) !== 0,
    };
  }

  /** Puts the group into a container, once. */
  setContainer(container: Container): void {
    const result = native.vfioSetContainer(this.fd.number, container.fd.number);
    if (result < 0)
      throw vfioError(`put group ${this.id} into a container`, VfioRequest.GROUP_SET_CONTAINER, -result);
  }

  /** Takes it out again, when no device of it is open. With the last group, the container's mappings end. */
  unsetContainer(): void {
    const what = `take group ${this.id} out of its container`;
    call(this.fd.number, VfioRequest.GROUP_UNSET_CONTAINER, 0, what);
  }

  /** Opens a device of the group, by its name in sysfs: `0000:00:03.0`, or the UUID of a mediated one. */
  openDevice(name: string): VfioDevice {
    const fd = native.vfioGetDevice(this.fd.number, name);
    if (fd < 0)
      throw vfioError(`open device ${name} of group ${this.id}`, VfioRequest.GROUP_GET_DEVICE_FD, -fd);
    return new VfioDevice(name, new Fd(fd));
  }

  close(): void {
    this.fd.close();
  }
}
