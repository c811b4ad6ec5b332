// SPDX-License-Identifier: Apache-2.0
/**
 * What a relay does before it takes another one's place: it takes over a connection of nobody, and lets go of it. The
 * first run of any code is slow, and here no VMM waits for it.
 */

import { Bundle, FdKind, parseHandoff } from '../handoff/index.js';
import { closeAll, type Fd, socketPair } from '../transport/index.js';
import { defaultCapabilities, HEADER_LENGTH } from '../wire/index.js';
import { encodeBytes, FdName, type SessionDocument, sessionDocument } from './handoff-document.js';
import { Packer, Unpacker } from './packing.js';
import type { SuccessorHost } from './receiver.js';

export function rehearseSession(adoptVmm: SuccessorHost['adoptVmm']): void {
  const [vmm, vmmEnd] = socketPair();
  const [server, serverEnd] = socketPair();
  const packer = new Packer();
  packer.addOwn(FdKind.SOCKET, FdName.vmm, vmm);
  packer.addOwn(FdKind.SOCKET, FdName.server, server);
  const document = documentOfNobody(packer);
  packer.seal();
  const bundle = new Bundle();
  const copies = packer.entries.map(({ fd }) => fd.duplicate());
  let unpacker: Unpacker | undefined;
  try {
    bundle.add(packer.entries, copies);
    unpacker = new Unpacker(bundle);
    const read = parseHandoff(sessionDocument, JSON.parse(JSON.stringify(document)), 'the rehearsal');
    const from = { document: read, unpacker };
    const session = adoptVmm(unpacker.take(FdKind.SOCKET, FdName.vmm), from);
    // As it would for another relay.
    const again = new Packer();
    session.capture(again);
    again.close();
    session.letGo();
  } finally {
    unpacker?.close();
    bundle.close();
    closeAll([...copies, vmmEnd, serverEnd]);
    packer.close();
  }
}

function documentOfNobody(packer: Packer): SessionDocument {
  const none: readonly Fd[] = [];
  const message = packer.message(new Uint8Array(HEADER_LENGTH), HEADER_LENGTH, none);
  const request = { ...message, id: 0, senderId: 0, command: 0, posted: false, silent: false };
  return {
    proposal: encodeBytes(new Uint8Array(4)),
    known: {
      path: '',
      version: { major: 0, minor: 0, capabilities: defaultCapabilities },
      identity: { flags: 0, regions: [], irqs: [], config: '', migrationRegion: null },
    },
    connection: {
      nextId: 1,
      requests: [{ ...request, origin: 'nobody' }],
      commands: { nextId: 1, waiting: [[0, 0]] },
    },
    lostForMs: null,
    bound: false,
    held: [{ ...packer.message(new Uint8Array(HEADER_LENGTH), HEADER_LENGTH, none), restMs: 0 }],
    log: {
      dma: [{ flags: 0, offset: 0, address: 0, size: 4096, hasFd: false }],
      interrupts: [
        { index: 0, actions: [{ action: 0, vectors: [{ vector: 0, hasFd: false }] }], masked: [0] },
      ],
      config: { bytes: [[4, 0]], resetBits: [{ offset: 64, mask: 1 }] },
      resets: 0,
    },
    note: '',
  };
}
