// SPDX-License-Identifier: Apache-2.0
/** A process that takes over from its predecessor: the sockets of its desk, and what that did there. */

import {
  type Adopted,
  type Bundle,
  collectGarbage,
  monotonicMs,
  parseHandoff,
  type Receiver,
  rehearseHandoff,
  requireKind,
} from '../handoff/index.js';
import type * as z from '../zod.js';
import { AdoptedSockets } from './adopted-sockets.js';
import { type Desk, eachSocket } from './desk.js';
import { LISTENER_NAMES } from './giver.js';

/** What a predecessor's work has become here. Nothing happens before `start`. */
export interface AdoptedWork {
  /** Begins, before anything is looked at that a client has sent. */
  start(): void | Promise<void>;
  /** The desk is this process's: what the VMM has sent is carried out. */
  thaw(): void;
  /** The predecessor continues: releases everything, without an effect on what that has. */
  abandon(): void | Promise<void>;
}

/** What a process can take over. */
export interface WorkKind<Offer extends { generation: number }, Document extends WorkDocument> {
  /** As the offer calls it: `device-server`, `relay`. */
  readonly what: string;
  readonly offer: z.ZodType<Offer>;
  readonly document: z.ZodType<Document>;
  /** Looks at what is offered, and gets ready. @throws to refuse */
  prepare(offer: Offer): void | Promise<void>;
  /** Becomes what the document says. @throws to refuse, having released what it took */
  adopt(bundle: Bundle, document: Document): AdoptedWork | Promise<AdoptedWork>;
}

/** What every document has. */
export interface WorkDocument {
  /** VMMs that wait. */
  readonly waiting: number;
  /** See `FrozenWork`. */
  readonly heldAtMs: number;
}

export class WorkReceiver<Offer extends { generation: number }, Document extends WorkDocument>
  implements Receiver
{
  readonly #desk: Desk;
  readonly #kind: WorkKind<Offer, Document>;
  #generation = 0;

  constructor(desk: Desk, kind: WorkKind<Offer, Document>) {
    this.#desk = desk;
    this.#kind = kind;
  }

  async prepare(offered: unknown): Promise<unknown> {
    requireKind(this.#kind.what, offered);
    const offer = parseHandoff(this.#kind.offer, offered, 'the offer');
    this.#generation = offer.generation;
    await this.#kind.prepare(offer);
    await rehearseHandoff();
    collectGarbage();
    return null;
  }

  async adopt(bundle: Bundle): Promise<Adopted> {
    const document = parseHandoff(this.#kind.document, bundle.document, 'the document');
    const desk = this.#desk;
    const sockets = new AdoptedSockets(bundle);
    try {
      const listeners = eachSocket(desk.paths, (path, role) =>
        sockets.takeListener(LISTENER_NAMES[role], path, desk.accept[role]),
      );
      sockets.takeWaiting(document.waiting);
      const work = await this.#kind.adopt(bundle, document);
      const start = async (): Promise<void> => {
        await work.start();
        const startedAtMs = monotonicMs();
        const pauseMs = startedAtMs - document.heldAtMs;
        const { waiting } = sockets;
        desk.install({ listeners, waiting, generation: this.#generation, pauseMs, startedAtMs });
        work.thaw();
        sockets.resume();
      };
      const abandon = async (): Promise<void> => {
        sockets.close();
        await work.abandon();
      };
      return { start, abandon };
    } catch (error) {
      sockets.close();
      throw error;
    }
  }
}
