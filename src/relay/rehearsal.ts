// SPDX-License-Identifier: Apache-2.0
/**
 * What a relay does before it takes another one's place: it captures a session that no VMM uses, and restores it, with the
 * code of a handoff. The first run of any code is slow, and here no VMM waits for it; others have their turns between.
 */

import { setImmediate as turn } from 'node:timers/promises';
import { packDocument, unpackDocument } from '../documents/index.js';
import { Bundle, parseHandoff } from '../handoff/index.js';
import { closeAll, type Fd, socketPair } from '../transport/index.js';
import {
  Command,
  DMA_MAP_LENGTH,
  defaultCapabilities,
  encodeDmaMap,
  encodeRegionAccess,
  encodeSetIrqs,
  IrqSetFlag,
  PciIrq,
  PciRegion,
  REGION_ACCESS_LENGTH,
  SET_IRQS_LENGTH,
} from '../wire/index.js';
import { BackEnd } from './back-end.js';
import { sessionDocument } from './handoff-document.js';
import { encodeRequest, NO_FDS, type OwnMessage } from './messages.js';
import { Packer } from './packing.js';
import { NO_SENDER } from './servers.js';
import type { Session } from './session.js';
import { adoptSession, type HandedSession } from './session-handoff.js';

export async function rehearseSession(newSession: (fd: Fd, from?: HandedSession) => Session): Promise<void> {
  const [vmm, vmmEnd] = socketPair();
  const [server, serverEnd] = socketPair();
  const before = newSession(vmm);
  const packer = new Packer();
  const bundle = new Bundle();
  let copies: Fd[] = [];
  try {
    furnish(before, server);
    await turn();
    const document = await before.capture(packer, new AbortController().signal);
    await packer.seal();
    await turn();
    copies = packer.entries.map(({ fd }) => fd.duplicate());
    bundle.add(packer.entries, copies);
    const packed = packDocument(document);
    await turn();
    const read = parseHandoff(sessionDocument, unpackDocument(packed), 'the rehearsal');
    await turn();
    (await adoptSession(bundle, read, newSession)).relinquish();
  } finally {
    before.relinquish();
    bundle.close();
    packer.close();
    closeAll([...copies, vmmEnd, serverEnd]);
  }
}

/** Gives a session one of each thing that goes along. Takes the server's connected socket. */
function furnish(session: Session, server: Fd): void {
  const { facts, hold, replayLog, servers, vmm: front } = session;
  const known = {
    path: '',
    version: { major: 0, minor: 0, capabilities: defaultCapabilities },
    identity: { flags: 0, regions: [], irqs: [], config: new Uint8Array(0), migrationRegion: undefined },
  };
  const back = BackEnd.adopt(server, known, servers);
  servers.restore(back);
  facts.known = back;
  facts.proposal = new Uint8Array(4);
  front?.socket.pause();

  const map = requestOf(Command.DMA_MAP, DMA_MAP_LENGTH, (body) =>
    encodeDmaMap(body, 0, { flags: 0, offset: 0, address: 0, size: 4096 }),
  );
  const { ACTION_MASK, ACTION_TRIGGER, DATA_EVENTFD, DATA_NONE } = IrqSetFlag;
  const [assign, mask] = [DATA_EVENTFD | ACTION_TRIGGER, DATA_NONE | ACTION_MASK].map((flags) =>
    requestOf(Command.DEVICE_SET_IRQS, SET_IRQS_LENGTH, (body) =>
      encodeSetIrqs(body, 0, { flags, index: PciIrq.INTX, start: 0, count: 1 }),
    ),
  ) as [OwnMessage, OwnMessage];
  const write = requestOf(Command.REGION_WRITE, REGION_ACCESS_LENGTH + 1, (body) =>
    encodeRegionAccess(body, 0, 4, PciRegion.CONFIG, 1),
  );
  for (const message of [map, assign, mask, write]) replayLog.note(message, NO_FDS);
  replayLog.config.resetBits = [{ offset: 64, mask: 1 }];
  back.forward(NO_SENDER, write, NO_FDS, true);
  hold.push(map);
  front?.commands.enter(back, mask);
}

/** @param length of its body */
function requestOf(command: number, length: number, encode: (body: DataView) => void): OwnMessage {
  const body = new Uint8Array(length);
  encode(new DataView(body.buffer));
  return encodeRequest(command, [body]);
}
