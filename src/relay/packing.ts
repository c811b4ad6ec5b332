// SPDX-License-Identifier: Apache-2.0
/** Packs what goes over to another relay: fds by kind and name, and the bytes of messages, in one sealed memory file. */

import { type Bundle, type BundleEntry, FdKind, readSealed, sealedMemory } from '../handoff/index.js';
import { closeAll, type Fd } from '../transport/index.js';
import { type OwnMessage, takeAll } from './messages.js';

const MESSAGES = 'messages';
/** Most bytes of messages: twice what is kept at most, in flight and waiting. */
const MAX_MESSAGES_LENGTH = 256 * 1024 * 1024;

/** A message in the document; its bytes follow those of the one before in the memory file. */
export interface PackedMessage {
  /** Of the whole message. */
  readonly length: number;
  /** Bytes of it that are kept. */
  readonly kept: number;
  readonly fds: number;
}

export class Packer {
  readonly entries: BundleEntry[] = [];
  readonly #own: Fd[] = [];
  readonly #bytes: Uint8Array[] = [];
  #passengers = 0;

  /** An fd that goes along and stays its owner's. */
  add(kind: FdKind, name: string, fd: Fd): void {
    this.entries.push({ kind, name, fd });
  }

  /** A second owner that was made for this. */
  addOwn(kind: FdKind, name: string, fd: Fd): void {
    this.#own.push(fd);
    this.add(kind, name, fd);
  }

  /** @param kept what there is of it; it must not change until {@link seal} */
  message(kept: Uint8Array, length: number, fds: readonly Fd[]): PackedMessage {
    for (const fd of fds) this.add(FdKind.PASSENGER, passengerName(this.#passengers++), fd);
    this.#bytes.push(kept);
    return { length, kept: kept.length, fds: fds.length };
  }

  /** All messages have been added. */
  seal(): void {
    if (this.#bytes.length > 0)
      this.addOwn(FdKind.SEALED, MESSAGES, sealedMemory('relay-messages', this.#bytes));
  }

  /** Closes what was made for this. */
  close(): void {
    closeAll(this.#own.splice(0));
    this.entries.length = 0;
  }
}

/** Owns what it has taken out of a bundle, until that is taken from it. */
export class Unpacker {
  readonly #bundle: Bundle;
  readonly #taken: Fd[] = [];
  readonly #bytes: Buffer;
  #at = 0;
  #passengers = 0;

  /** @throws DEVSTATE_E_HANDOFF_BUNDLE */
  constructor(bundle: Bundle) {
    this.#bundle = bundle;
    if (!bundle.names.includes(MESSAGES)) {
      this.#bytes = Buffer.alloc(0);
      return;
    }
    const fd = bundle.take(MESSAGES, FdKind.SEALED);
    try {
      const chunks = Array.from(readSealed(fd, MAX_MESSAGES_LENGTH), (chunk) => chunk.slice());
      this.#bytes = Buffer.concat(chunks);
    } finally {
      fd.close();
    }
  }

  /** The fd stays ours: to be taken from, or closed by {@link close}. @throws DEVSTATE_E_HANDOFF_BUNDLE */
  take(kind: FdKind, name: string): Fd {
    const fd = this.#bundle.take(name, kind);
    this.#taken.push(fd);
    return fd;
  }

  /** The next message; who gets it owns its fds. @throws DEVSTATE_E_HANDOFF_BUNDLE */
  message({ length, kept, fds: count }: PackedMessage): OwnMessage {
    const bytes = new Uint8Array(kept);
    bytes.set(this.#bytes.subarray(this.#at, this.#at + kept));
    this.#at += kept;
    const fds = Array.from({ length: count }, () =>
      this.take(FdKind.PASSENGER, passengerName(this.#passengers++)),
    );
    return { bytes, view: new DataView(bytes.buffer), length, fds: takeAll(fds) };
  }

  /** Closes what nobody has taken. */
  close(): void {
    closeAll(this.#taken.splice(0));
  }
}

function passengerName(index: number): string {
  return `message:${index}`;
}
