// SPDX-License-Identifier: Apache-2.0
/** A session as managers see it. */

import { Errno, MigrationState, RequestError } from '../wire/index.js';
import type { BackEnd } from './back-end.js';
import type { Managed } from './manager-connection.js';
import type { Session } from './session.js';

/** @param target which of the session's servers they manage */
export function managedBy(session: Session, target: () => BackEnd): Managed {
  return {
    target,
    get maxTransfer() {
      return target().maxTransfer;
    },
    get memory() {
      return session.replayLog.dma;
    },
    nextVmm: session.next,
    get note() {
      return session.facts.note;
    },
    set note(bytes) {
      session.facts.note = bytes;
    },
    configReadsOf: (vmm) => session.configReadsOf(vmm),
    get isDriven() {
      const { back } = session.servers;
      return back !== undefined && (back.log.isOn || back.state !== MigrationState.RUNNING);
    },
    stopping: () => session.keepConfig(),
  };
}

/** The server of the VMM. @throws RequestError ENOTCONN, EBUSY */
export function currentServer(session: Session): BackEnd {
  const { back, isOpen } = session.servers;
  if (back === undefined) throw new RequestError(Errno.ENOTCONN, 'the relay has no device server');
  if (!isOpen) throw new RequestError(Errno.EBUSY, 'the relay is about to replace its device server');
  return back;
}
