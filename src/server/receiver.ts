// SPDX-License-Identifier: Apache-2.0
/** What a server takes over from its predecessor: the VMM's connection, the device, a manager's note. */

import { type Bundle, FdKind, requireSameOption } from '../handoff/index.js';
import type { AdoptedWork, WorkKind } from '../succession/index.js';
import { closeAll, type Fd } from '../transport/index.js';
import type { Connection, FrozenConnection } from './connection.js';
import { unpackConnection } from './connection-bundle.js';
import {
  FdName,
  type HandoffOffer,
  handoffOffer,
  type ServerDocument,
  serverDocument,
} from './handoff-messages.js';
import type { HandoffPort } from './handoff-port.js';
import { rehearseConnection } from './rehearsal.js';

/** What the server that is to be makes of what comes. */
export interface SuccessorHost {
  readonly device: HandoffPort;
  /** Where it is to listen, as its predecessor would offer it. */
  readonly paths: Pick<HandoffOffer, 'socketPath' | 'migrationSocketPath'>;
  /** A connection that continues where the predecessor's stopped. */
  adoptVmm(fd: Fd, frozen: FrozenConnection): Connection;
  /** The VMM and the note are these, from now on. */
  installed(vmm: Connection | undefined, note: Uint8Array): void;
}

export function serverKind(host: SuccessorHost): WorkKind<HandoffOffer, ServerDocument> {
  const { device, paths } = host;
  return {
    what: 'device-server',
    offer: handoffOffer,
    document: serverDocument,
    prepare: async (offer) => {
      requireSameOption('server', '--socket', offer.socketPath, paths.socketPath);
      requireSameOption('server', '--migration-socket', offer.migrationSocketPath, paths.migrationSocketPath);
      await device.rehearse(offer.format);
      await rehearseConnection((fd, frozen) => host.adoptVmm(fd, frozen));
    },
    adopt: (bundle, document) => adopt(host, bundle, document),
  };
}

async function adopt(host: SuccessorHost, bundle: Bundle, document: ServerDocument): Promise<AdoptedWork> {
  const { device } = host;
  const vmm = document.vmm === null ? undefined : await adoptVmm(host, bundle, document.vmm);
  try {
    await device.adopt(bundle, document.device, vmm?.dmaPeer);
  } catch (error) {
    vmm?.relinquish();
    throw error;
  }
  return {
    // The device first: then it is there when the next message is answered.
    start: () => device.start(),
    thaw: () => {
      host.installed(vmm, document.note);
      vmm?.thaw();
    },
    abandon: async () => {
      vmm?.relinquish();
      await device.relinquish();
    },
  };
}

async function adoptVmm(
  host: SuccessorHost,
  bundle: Bundle,
  document: NonNullable<ServerDocument['vmm']>,
): Promise<Connection> {
  const frozen = await unpackConnection(document, bundle);
  try {
    return host.adoptVmm(bundle.take(FdName.vmm, FdKind.SOCKET), frozen);
  } catch (error) {
    closeAll([...frozen.backlog.flatMap(({ fds }) => fds), ...(frozen.dma?.twin ? [frozen.dma.twin] : [])]);
    throw error;
  }
}
