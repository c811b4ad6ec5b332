// SPDX-License-Identifier: Apache-2.0
/** What a controller of the model is, as the standard format says it. */

import type { NvmeIdentity } from '../../../formats/index.js';
import { CONTROLLER_ID, NSID, type NvmeParameters, namespaceIdentity } from '../spec/index.js';

export function standardIdentity(parameters: NvmeParameters): NvmeIdentity {
  return {
    controllerId: CONTROLLER_ID,
    serial: parameters.serial,
    modelNumber: parameters.model_number,
    firmware: parameters.firmware,
    queues: parameters.queues,
    msixVectors: parameters.msix_vectors,
    queueEntries: parameters.queue_entries,
    mdts: parameters.mdts,
    namespaces: [
      {
        id: NSID,
        size: parameters.namespace_size,
        lbaSize: parameters.lba_size,
        ...namespaceIdentity(parameters.serial),
      },
    ],
  };
}
