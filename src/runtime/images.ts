// SPDX-License-Identifier: Apache-2.0
/** The image files of a device, as its server lets managers ask about them. */

import type { DeviceImage } from '../device/index.js';
import { asDevstateError } from '../errors.js';
import type { ImagesPort } from '../server/index.js';
import { Errno, type ImagesReport, RequestError } from '../wire/index.js';

export class DeviceImages implements ImagesPort {
  readonly #images: readonly DeviceImage[];

  constructor(images: readonly DeviceImage[]) {
    this.#images = images;
  }

  report(byte: number): ImagesReport {
    return refusing(() => ({
      images: this.#images.map((image) => ({
        path: image.path,
        locked: image.locked,
        free: image.isFree(byte),
      })),
    }));
  }

  leaveOut(byte: number | undefined): void {
    refusing(() => {
      for (const image of this.#images) image.leaveOut(byte);
    });
  }
}

/** What goes wrong with a file is no fault of the server. */
function refusing<T>(work: () => T): T {
  try {
    return work();
  } catch (error) {
    const { errno = Errno.EBUSY, message } = asDevstateError(error);
    throw new RequestError(errno, message);
  }
}
