// SPDX-License-Identifier: Apache-2.0
/** What arrives with a handoff: fds by kind and name, and the document that says what they are for. */

import { malformed } from '../documents/index.js';
import { systemLimits } from '../native/index.js';
import { closeAll, type Fd } from '../transport/index.js';
import { type FdKind, fdKindName, requireKind } from './fd-kind.js';
import { type EntryLabel, MAX_BUNDLE_FDS } from './protocol.js';

/** An fd that is handed over. It stays its owner's, who may close it once the handoff has ended. */
export interface BundleEntry {
  readonly kind: FdKind;
  /** Unique in its bundle, 1 to 255 bytes. */
  readonly name: string;
  readonly fd: Fd;
}

/** Owns every fd that came and has not been taken. */
export class Bundle {
  readonly #entries = new Map<string, { kind: number; fd: Fd }>();
  #document: unknown;

  /** What the giver says the fds are for. Not validated. */
  get document(): unknown {
    return this.#document;
  }

  /** Names of those that no one has taken, in the order they came. */
  get names(): string[] {
    return [...this.#entries.keys()];
  }

  /**
   * Takes the fds of one message. @throws DEVSTATE_E_HANDOFF_BUNDLE when they are not what the labels say; those that
   * were not taken stay the caller's
   */
  add(labels: readonly EntryLabel[], fds: readonly Fd[]): void {
    if (labels.length !== fds.length)
      throw malformed(`a message names ${labels.length} fds and carries ${fds.length}`);
    const limit = Math.min(MAX_BUNDLE_FDS, systemLimits().fds);
    if (this.#entries.size + fds.length > limit) throw malformed(`more than ${limit} fds in one bundle`);
    labels.forEach(({ kind, name }, index) => {
      const fd = fds[index]!;
      if (this.#entries.has(name)) throw malformed(`two fds are named ${name}`);
      requireKind(fd, kind, name);
      this.#entries.set(name, { kind, fd: fd.take() });
    });
  }

  /** All have come. @throws DEVSTATE_E_HANDOFF_BUNDLE when that is not so */
  complete(count: number, document: unknown): void {
    if (this.#entries.size !== count)
      throw malformed(`${count} fds were to come, ${this.#entries.size} have come`);
    this.#document = document;
  }

  /** @throws DEVSTATE_E_HANDOFF_BUNDLE when there is none of that name and kind */
  take(name: string, kind: FdKind): Fd {
    const entry = this.#entries.get(name);
    if (entry === undefined) throw malformed(`the fd ${name} is missing`);
    if (entry.kind !== kind)
      throw malformed(`${name} is a ${fdKindName(entry.kind)}, not a ${fdKindName(kind)}`);
    this.#entries.delete(name);
    return entry.fd;
  }

  /** @throws DEVSTATE_E_HANDOFF_BUNDLE when there is an fd that no one has taken: its giver thinks we need it */
  requireAllTaken(): void {
    const [name] = this.names;
    if (name !== undefined) throw malformed(`nothing is known here that ${name} would be for`);
  }

  /** Closes what was not taken. */
  close(): void {
    closeAll([...this.#entries.values()].map(({ fd }) => fd));
    this.#entries.clear();
  }
}
