// SPDX-License-Identifier: Apache-2.0
/**
 * What a server does before it takes another one's place: it captures a connection that no VMM uses, and restores it, with
 * the code of a handoff. The first run of any code is slow, and here no VMM waits for it.
 */

import { Bundle, monotonicMs, parseHandoff } from '../handoff/index.js';
import { closeAll, socketPair } from '../transport/index.js';
import { Command, defaultCapabilities, encodeHeader, HEADER_LENGTH, HeaderFlag } from '../wire/index.js';
import { packConnection, unpackConnection } from './connection-bundle.js';
import { type ServerDocument, serverDocument } from './handoff-messages.js';
import type { SuccessorHost } from './receiver.js';

export async function rehearseConnection(adoptVmm: SuccessorHost['adoptVmm']): Promise<void> {
  const [ours, theirs] = socketPair();
  const [again, theirsAgain] = socketPair();
  const backlog = [{ bytes: waitingMessage(), fds: [] }];
  const before = adoptVmm(ours, { negotiated: false, peer: defaultCapabilities, dma: undefined, backlog });
  const bundle = new Bundle();
  try {
    const vmm = packConnection(await before.freeze(), () => {});
    const document: ServerDocument = { vmm, waiting: 0, note: '', heldAtMs: monotonicMs(), device: null };
    const read = parseHandoff(serverDocument, JSON.parse(JSON.stringify(document)), 'the rehearsal');
    if (read.vmm !== null) adoptVmm(again, unpackConnection(read.vmm, bundle)).letGo();
  } finally {
    before.letGo();
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
