// SPDX-License-Identifier: Apache-2.0
/**
 * The crash journal of a device server: memory and fds that a supervisor keeps, so that a server that was killed is
 * followed by one that continues where it stood.
 */

import { DevstateError } from '../errors.js';
import { FdStore, Notifier, type ServiceEnvironment } from '../fd-store/index.js';
import {
  EFFECTS_SLOT,
  Journal,
  type JournalOptions,
  journalError,
  type SlotSpec,
  Transactions,
} from '../journal/index.js';
import { check, checkObject, type Mapping, native, Protection, RESIDENT, Seal } from '../native/index.js';
import { Fd } from '../transport/index.js';
import { MAX_MESSAGE_LENGTH } from './capabilities.js';

/** Its name in the store. */
const JOURNAL_NAME = 'journal';

/** What the server itself keeps. */
export const ServerSlot = {
  /** Number and length of the last reply: 2 × u32. */
  answer: { name: 'server:answer', capacity: 8 },
  /** Which fds are the sockets. JSON. */
  sockets: { name: 'server:sockets', capacity: 1024 },
  /** What was agreed on with the VMM. JSON. */
  connection: { name: 'server:connection', capacity: 4096 },
} as const satisfies Record<string, SlotSpec>;

export interface CrashJournalOptions {
  readonly environment: ServiceEnvironment;
  /** What the device keeps: `DeviceRuntime.journalSlots`. */
  readonly slots: readonly SlotSpec[];
  readonly log?: (level: 'error', message: string) => void;
  /** For tests that end the process at a certain store. */
  readonly onStore?: () => void;
}

export class CrashJournal {
  readonly journal: Journal;
  readonly transactions: Transactions;
  readonly store: FdStore;
  /** Bytes of the buffers for one request and one reply, as windows of their own. */
  readonly request: Uint8Array<ArrayBuffer>;
  readonly reply: Uint8Array;
  /** Whether there is a predecessor's state to continue with. */
  readonly recovered: boolean;
  readonly #notifier: Notifier;
  readonly #mapping: Mapping;

  private constructor(
    notifier: Notifier,
    mapping: Mapping,
    journal: Journal,
    store: FdStore,
    recovered: boolean,
  ) {
    this.#notifier = notifier;
    this.#mapping = mapping;
    this.journal = journal;
    this.transactions = new Transactions(journal);
    this.store = store;
    this.recovered = recovered;
    this.transactions.afterwards(() => store.flush());
    const { requestAt, replyAt, messageLength } = journal.exchange;
    const window = (at: number) =>
      new Uint8Array(checkObject(mapping.window(at, messageLength), 'reach the journal'));
    this.request = window(requestAt);
    this.reply = window(replyAt);
  }

  /**
   * Makes the journal and has it kept, or takes up the one that was kept.
   * @throws DevstateError DEVSTATE_E_JOURNAL, DEVSTATE_E_SYSTEM
   */
  static open({ environment, slots, log, onStore }: CrashJournalOptions): CrashJournal {
    const { notifySocket, capacity, fds } = environment;
    if (notifySocket === undefined || capacity === 0)
      throw new DevstateError(
        'DEVSTATE_E_USAGE',
        'no process would keep the crash journal: start the server with `devstate run -- ...`, or as a service with an fd store',
      );
    const all: SlotSpec[] = [...Object.values(ServerSlot), EFFECTS_SLOT, ...slots];
    const options: JournalOptions = {
      messageLength: MAX_MESSAGE_LENGTH,
      ...(onStore === undefined ? {} : { onStore }),
    };
    const notifier = new Notifier(notifySocket);
    const kept = fds.find(({ name }) => name === JOURNAL_NAME)?.fd;
    const store = new FdStore(
      notifier,
      capacity - 1,
      fds.filter(({ fd }) => fd !== kept),
    );
    store.onLost = (error) => {
      const why = error instanceof Error ? error.message : String(error);
      log?.('error', `the supervisor is gone, and a crash would be the end of the device: ${why}`);
    };
    const memory = kept ?? makeMemory(Journal.lengthOf(all, options));
    try {
      const mapping = mapAll(memory);
      const bytes = new Uint8Array(checkObject(mapping.window(0, mapping.length), 'reach the journal'));
      const before = kept === undefined ? undefined : Journal.open(bytes, all, options);
      // A server that ended before it listened has left nothing to continue with.
      const recovered = before?.get(before.slot(ServerSlot.sockets.name)) !== undefined;
      const journal = before ?? Journal.create(bytes, all, options);
      if (kept === undefined) notifier.send({ kind: 'store', name: JOURNAL_NAME }, memory);
      return new CrashJournal(notifier, mapping, journal, store, recovered);
    } finally {
      memory.close();
    }
  }

  /** Tells the service manager that the server serves. */
  ready(): void {
    try {
      this.#notifier.send({ kind: 'ready' });
    } catch {
      // It is for the processes that wait for it; the device is served with and without.
    }
  }

  /** The server ends, not by a crash: nothing is kept for a successor. */
  close(): void {
    try {
      this.#notifier.send({ kind: 'remove', name: JOURNAL_NAME });
    } catch {
      // A supervisor that is gone keeps nothing.
    }
    this.store.close();
    this.#notifier.close();
    this.#mapping.unmap();
  }
}

function makeMemory(length: number): Fd {
  const fd = new Fd(check(native.memfdCreate('devstate-journal'), 'make the crash journal'));
  try {
    check(native.truncate(fd.number, length), 'size the crash journal');
    check(native.addSeals(fd.number, Seal.shrink | Seal.grow | Seal.seal), 'seal the crash journal');
    return fd;
  } catch (error) {
    fd.close();
    throw error;
  }
}

function mapAll(memory: Fd): Mapping {
  const stat = new Float64Array(4);
  check(native.stat(memory.number, stat), 'examine the crash journal');
  const length = stat[0]!;
  if (length === 0) throw journalError('it is empty');
  return checkObject(
    native.map(memory.number, 0, length, Protection.readWrite | RESIDENT),
    'map the crash journal',
  );
}
