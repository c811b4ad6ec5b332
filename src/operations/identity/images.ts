// SPDX-License-Identifier: Apache-2.0
/** Whether both servers of a device work on the same images, for those who name devices by id. */

import { type ImageEnd, whyOtherImages } from '../../client/index.js';

/** @returns what speaks against it, as sentences about device `id`; nothing has been changed */
export async function proveImages(id: string, source: ImageEnd, destination: ImageEnd): Promise<string[]> {
  const why = await whyOtherImages(source, destination);
  if (why === undefined) return [];
  return [
    `device ${id}: ${why}; if the storage is kept the same by other means, say so with --image-unchecked ${id}`,
  ];
}
