// SPDX-License-Identifier: Apache-2.0
/** From the standard format to the state of its PCI function alone. */
import {
  type Converter,
  decodeNvmeState,
  encodePciFunction,
  type FormatRecord,
  NVME_STANDARD,
  NVME_STANDARD_VERSION,
  NvmeStateDecoder,
  PCI_FUNCTION,
  PCI_FUNCTION_VERSION,
} from '../../../formats/index.js';

export const standardToPciFunction: Converter = {
  from: { uuid: NVME_STANDARD.uuid, name: NVME_STANDARD.name, major: NVME_STANDARD_VERSION.major },
  to: { uuid: PCI_FUNCTION.uuid, name: PCI_FUNCTION.name, version: PCI_FUNCTION_VERSION },
  losses: ['everything of the controller but its PCI configuration space and MSI-X table'],
  begin: () => {
    const records: FormatRecord[] = [];
    return {
      record: (record) => {
        if (!NvmeStateDecoder.knows(record.type)) return undefined;
        records.push({ ...record, payload: new Uint8Array(record.payload) });
        return [];
      },
      end: () => encodePciFunction(decodeNvmeState(records).pci),
    };
  },
};
