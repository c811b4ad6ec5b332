// SPDX-License-Identifier: Apache-2.0
/** Identifiers that follow from the serial number alone, so that every implementation of the model has the same ones. */

import { createHash } from 'node:crypto';

export interface NamespaceIdentity {
  /** 16 bytes. */
  readonly nguid: Uint8Array;
  /** 8 bytes. */
  readonly eui64: Uint8Array;
}

function derive(serial: string, purpose: string, length: number): Uint8Array {
  return new Uint8Array(
    createHash('sha256').update(`devstate.org/nvme ${purpose} ${serial}`).digest().subarray(0, length),
  );
}

/** NGUID and EUI-64 of the namespace. */
export function namespaceIdentity(serial: string): NamespaceIdentity {
  const nguid = derive(serial, 'nguid', 16);
  const eui64 = derive(serial, 'eui64', 8);
  // No OUI is ours: the identifier inside says that it is locally administered. (In an NGUID the OUI is at byte 8.)
  nguid[8] = (nguid[8]! & 0xfc) | 0x02;
  eui64[0] = (eui64[0]! & 0xfc) | 0x02;
  return { nguid, eui64 };
}

/** NVMe Qualified Name of the subsystem, in the form by UUID (NVMe 1.4, section 7.9). */
export function subsystemNqn(serial: string): string {
  const bytes = derive(serial, 'subsystem', 16);
  bytes[6] = (bytes[6]! & 0x0f) | 0x80; // version 8: a UUID of our own making
  bytes[8] = (bytes[8]! & 0x3f) | 0x80;
  const hex = Buffer.from(bytes).toString('hex');
  const uuid = [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20)].join(
    '-',
  );
  return `nqn.2014-08.org.nvmexpress:uuid:${uuid}`;
}
