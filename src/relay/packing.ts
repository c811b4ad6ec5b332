// SPDX-License-Identifier: Apache-2.0
/** Packs what goes over to another relay: fds by kind and name, and the bytes of messages, in one sealed memory file. */

import { malformed } from '../documents/index.js';
import { type Bundle, type BundleEntry, FdKind, sealedContent, sealedMemory } from '../handoff/index.js';
import { closeAll, type Fd } from '../transport/index.js';
import { type OwnMessage, takeAll } from './messages.js';

const MESSAGES = 'messages';
/** Most bytes of messages: twice what is kept at most, in flight and waiting. */
const MAX_MESSAGES_LENGTH = 256 * 1024 * 1024;

/** A message in the document; its bytes follow those of the one before in the memory file. */
export interface PackedMessage {
  /** Bytes of the whole message. */
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
  async seal(): Promise<void> {
    if (this.#bytes.length > 0)
      this.addOwn(FdKind.SEALED, MESSAGES, await sealedMemory('relay-messages', this.#bytes));
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
  readonly #bytes: Uint8Array;
  #at = 0;
  #passengers = 0;

  private constructor(bundle: Bundle, bytes: Uint8Array) {
    this.#bundle = bundle;
    this.#bytes = bytes;
  }

  /** @throws DEVSTATE_E_HANDOFF_BUNDLE */
  static async open(bundle: Bundle): Promise<Unpacker> {
    if (!bundle.names.includes(MESSAGES)) return new Unpacker(bundle, new Uint8Array(0));
    const fd = bundle.take(MESSAGES, FdKind.SEALED);
    try {
      return new Unpacker(bundle, await sealedContent(fd, MAX_MESSAGES_LENGTH));
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
    if (this.#at + kept > this.#bytes.length) throw malformed('a message is longer than what came of it');
    // No copy: all may be hundreds of megabytes.
    const bytes = this.#bytes.subarray(this.#at, this.#at + kept);
    this.#at += kept;
    const fds = Array.from({ length: count }, () =>
      this.take(FdKind.PASSENGER, passengerName(this.#passengers++)),
    );
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
    return { bytes, view, length, fds: takeAll(fds) };
  }

  /** Closes what no one has taken. */
  close(): void {
    closeAll(this.#taken.splice(0));
  }
}

function passengerName(index: number): string {
  return `message:${index}`;
}
