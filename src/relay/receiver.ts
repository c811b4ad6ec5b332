// SPDX-License-Identifier: Apache-2.0
/** What a relay takes over from another one: the VMM's connection, the server's, and all that is between the two. */

import { requireSameOption } from '../handoff/index.js';
import type { AdoptedWork, WorkKind } from '../succession/index.js';
import type { Fd } from '../transport/index.js';
import { type ReadRelay, type RelayOffer, relayDocument, relayOffer } from './handoff-document.js';
import { rehearseSession } from './rehearsal.js';
import type { Session } from './session.js';
import { adoptSession, type HandedSession } from './session-handoff.js';

/** What the relay that is to be makes of what comes. */
export interface SuccessorHost {
  /** The relay's own paths, as it would offer them. */
  readonly paths: Omit<RelayOffer, 'what' | 'generation'>;
  /** A VMM's session: the predecessor's, which continues after `thaw`, or without `from` a new one. Takes the fd. */
  newSession(fd: Fd, from?: HandedSession): Session;
  /** The session is this one, from now on. */
  installed(session: Session | undefined): void;
}

/** The options that must be those of the relay that is replaced. */
const SAME = [
  ['--listen', 'listenPath'],
  ['--server', 'serverPath'],
  ['--migration-socket', 'migrationSocketPath'],
  ['--control', 'controlPath'],
] as const;

export function relayKind(host: SuccessorHost): WorkKind<RelayOffer, ReadRelay> {
  return {
    what: 'relay',
    offer: relayOffer,
    document: relayDocument,
    prepare: async (offer) => {
      for (const [option, key] of SAME) requireSameOption('relay', option, offer[key], host.paths[key]);
      await rehearseSession((fd, from) => host.newSession(fd, from));
    },
    adopt: async (bundle, { session: document }): Promise<AdoptedWork> => {
      const session =
        document === null
          ? undefined
          : await adoptSession(bundle, document, (fd, from) => host.newSession(fd, from));
      return {
        start: () => {},
        thaw: () => {
          host.installed(session);
          session?.thaw();
        },
        abandon: () => session?.relinquish(),
      };
    },
  };
}
