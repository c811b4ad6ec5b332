// SPDX-License-Identifier: Apache-2.0
/**
 * What a server does before it takes another one's place: it captures a connection that no VMM uses, and restores it, with
 * the code of a handoff. The first run of any code is slow, and here no VMM waits for it; others have their turns between.
 */

import { setImmediate as turn } from 'node:timers/promises';
import { packDocument, unpackDocument } from '../documents/index.js';
import { Bundle, monotonicMs, parseHandoff } from '../handoff/index.js';
import { closeAll, type Fd, socketPair } from '../transport/index.js';
import { Command, defaultCapabilities, encodeHeader, HEADER_LENGTH, HeaderFlag } from '../wire/index.js';
import type { Connection, FrozenConnection } from './connection.js';
import { packConnection, unpackConnection } from './connection-bundle.js';
import { type ServerDocument, serverDocument } from './handoff-messages.js';

export async function rehearseConnection(
  adoptVmm: (fd: Fd, frozen: FrozenConnection) => Connection,
): Promise<void> {
  const [ours, theirs] = socketPair();
  const [again, theirsAgain] = socketPair();
  const backlog = [{ bytes: waitingMessage(), fds: [] }];
  const before = adoptVmm(ours, { negotiated: false, peer: defaultCapabilities, dma: undefined, backlog });
  const bundle = new Bundle();
  try {
    const vmm = await packConnection(await before.freeze(), () => {});
    const note = Uint8Array.of(0);
    const document: ServerDocument = { vmm, waiting: 0, note, heldAtMs: monotonicMs(), device: null };
    await turn();
    const packed = packDocument(document);
    await turn();
    const read = parseHandoff(serverDocument, unpackDocument(packed), 'the rehearsal');
    await turn();
    if (read.vmm !== null) adoptVmm(again, await unpackConnection(read.vmm, bundle)).relinquish();
  } finally {
    before.relinquish();
    bundle.close();
    closeAll([theirs, theirsAgain]);
  }
}

function waitingMessage(): Uint8Array {
  const bytes = new Uint8Array(HEADER_LENGTH);
  const view = new DataView(bytes.buffer);
  encodeHeader(view, 0, 0, Command.DEVICE_RESET, HEADER_LENGTH, HeaderFlag.TYPE_COMMAND);
  return bytes;
}
