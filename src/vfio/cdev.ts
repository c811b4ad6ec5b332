// SPDX-License-Identifier: Apache-2.0
/** `/dev/vfio/devices/vfioN`: a device opened by a file of its own, of no use before it is bound to an iommufd. */

import { callStruct } from './call.js';
import { VfioDevice } from './device.js';
import type { Iommufd } from './iommufd.js';
import { openVfio, VFIO_DIRECTORY } from './open.js';
import {
  decodeAttachIommufd,
  decodeBindIommufd,
  encodeAttachIommufd,
  encodeBindIommufd,
  encodeDetachIommufd,
  VfioRequest,
} from './uapi/index.js';

export class Cdev extends VfioDevice {
  /** @param path as in `/dev/vfio/devices/vfio0`, or just `vfio0`. @throws DEVSTATE_E_VFIO_BUSY, DEVSTATE_E_VFIO_ACCESS */
  static open(path: string): Cdev {
    const full = path.includes('/') ? path : `${VFIO_DIRECTORY}/devices/${path}`;
    return new Cdev(full.slice(full.lastIndexOf('/') + 1), openVfio(full));
  }

  /** Binds the device, once for its open file. @returns its id in the iommufd @throws DEVSTATE_E_VFIO_BUSY */
  bind(iommufd: Iommufd): number {
    const bytes = encodeBindIommufd(iommufd.fd.number);
    callStruct(this.fd.number, VfioRequest.DEVICE_BIND_IOMMUFD, bytes, `bind ${this.name} to an iommufd`);
    return decodeBindIommufd(bytes);
  }

  /** Has the device use an address space. @returns the id of the page table that was made for it */
  attach(ioas: number): number {
    const bytes = encodeAttachIommufd(ioas);
    const what = `attach ${this.name} to IOAS ${ioas}`;
    callStruct(this.fd.number, VfioRequest.DEVICE_ATTACH_IOMMUFD_PT, bytes, what);
    return decodeAttachIommufd(bytes);
  }

  /** From now on the device reaches no memory. */
  detach(): void {
    const what = `detach ${this.name} from its address space`;
    callStruct(this.fd.number, VfioRequest.DEVICE_DETACH_IOMMUFD_PT, encodeDetachIommufd(), what);
  }
}
