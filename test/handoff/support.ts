// SPDX-License-Identifier: Apache-2.0
/** What the tests of the handoff share: givers and receivers that record what becomes of them, and fds of every kind. */

import {
  type Adopted,
  type Bundle,
  type BundleEntry,
  FdKind,
  type Giver,
  type Receiver,
  sealedMemory,
} from '../../src/handoff/index.js';
import { check, native } from '../../src/native/index.js';
import { closeAll, Fd, socketPair } from '../../src/transport/index.js';

export function eventfd(): Fd {
  return new Fd(check(native.eventfdCreate(0), 'make an eventfd'));
}

export function memory(name = 'memory'): Fd {
  const fd = new Fd(check(native.memfdCreate(name), 'make a memfd'));
  check(native.truncate(fd.number, 4096), 'size a memfd');
  return fd;
}

/** One of every kind that needs no privilege. */
export async function assortment(): Promise<{ entries: BundleEntry[]; close: () => void }> {
  const [socket, other] = socketPair();
  const entries: BundleEntry[] = [
    { kind: FdKind.SOCKET, name: 'socket', fd: socket },
    { kind: FdKind.EVENTFD, name: 'eventfd', fd: eventfd() },
    { kind: FdKind.MEMORY, name: 'memory', fd: memory() },
    { kind: FdKind.SEALED, name: 'sealed', fd: await sealedMemory('sealed', [Uint8Array.of(1, 2, 3)]) },
    { kind: FdKind.PASSENGER, name: 'passenger', fd: eventfd() },
  ];
  return { entries, close: () => closeAll([other, ...entries.map(({ fd }) => fd)]) };
}

/** Gives `entries`, and records whether it was frozen and thawed. */
export class RecordingGiver implements Giver {
  readonly offer = { what: 'a test' };
  answer: unknown;
  frozen = 0;
  thawed = 0;

  constructor(
    readonly entries: readonly BundleEntry[],
    readonly document: unknown = null,
  ) {}

  async freeze(answer: unknown): Promise<{ entries: readonly BundleEntry[]; document: unknown }> {
    this.answer = answer;
    this.frozen++;
    return { entries: this.entries, document: this.document };
  }

  async thaw(): Promise<void> {
    this.thawed++;
  }
}

/** Takes everything, and records what becomes of it. */
export class RecordingReceiver implements Receiver {
  offer: unknown;
  document: unknown;
  readonly taken = new Map<string, Fd>();
  started = 0;
  abandoned = 0;

  constructor(readonly entries: readonly Pick<BundleEntry, 'kind' | 'name'>[]) {}

  prepare(offer: unknown): unknown {
    this.offer = offer;
    return { ready: true };
  }

  async adopt(bundle: Bundle): Promise<Adopted> {
    this.document = bundle.document;
    try {
      for (const { kind, name } of this.entries) this.taken.set(name, bundle.take(name, kind));
    } catch (error) {
      this.close();
      throw error;
    }
    return {
      start: () => {
        this.started++;
      },
      abandon: () => {
        this.abandoned++;
        this.close();
      },
    };
  }

  close(): void {
    closeAll(this.taken.values());
    this.taken.clear();
  }
}
