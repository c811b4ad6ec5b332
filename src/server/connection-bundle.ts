// SPDX-License-Identifier: Apache-2.0
/** The VMM's connection, as it goes from a server to its successor, and back out of what came. */

import { type Bundle, FdKind } from '../handoff/index.js';
import type { Fd } from '../transport/index.js';
import { packBacklog, unpackBacklog } from './backlog-bundle.js';
import type { FrozenConnection } from './connection.js';
import { FdName, type ServerDocument } from './handoff-messages.js';

type ConnectionDocument = NonNullable<ServerDocument['vmm']>;

/** @param add puts an fd into the bundle, which owns it from then on */
export async function packConnection(
  { negotiated, peer, dma, backlog }: FrozenConnection,
  add: (kind: FdKind, name: string, fd: Fd) => void,
): Promise<ConnectionDocument> {
  if (dma?.twin !== undefined) add(FdKind.SOCKET, FdName.twin, dma.twin);
  return {
    negotiated,
    peer,
    dma:
      dma === undefined
        ? null
        : {
            maxTransfer: dma.terms.maxTransfer,
            width: dma.terms.width ?? null,
            twin: dma.twin !== undefined,
          },
    backlog: await packBacklog(backlog, add),
  };
}

/** Owns the fds that are taken out of the bundle. @throws DEVSTATE_E_HANDOFF_BUNDLE */
export async function unpackConnection(
  { negotiated, peer, dma, backlog }: ConnectionDocument,
  bundle: Bundle,
): Promise<FrozenConnection> {
  const twin = dma?.twin === true ? bundle.take(FdName.twin, FdKind.SOCKET) : undefined;
  try {
    return {
      negotiated,
      peer,
      dma:
        dma === null
          ? undefined
          : { terms: { maxTransfer: dma.maxTransfer, width: dma.width ?? undefined }, twin },
      backlog: await unpackBacklog(backlog, bundle),
    };
  } catch (error) {
    twin?.close();
    throw error;
  }
}
