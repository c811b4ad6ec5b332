// SPDX-License-Identifier: Apache-2.0
/**
 * What becomes of a VM while a manager works on it, no matter who causes it: the guest, or another client of its QEMU.
 *
 *     STOP, RESUME           the CPUs: stopped by QEMU's own migration, or by somebody else, which only query-status tells
 *     SUSPEND, WAKEUP        the guest sleeps (S3); QEMU takes such a VM for one that runs
 *     RESET                  its devices were reset before this event came
 *     SHUTDOWN, GUEST_PANICKED, and a run state in which no VM runs on: it has ended
 *     DEVICE_DELETED         a device is not part of it any more
 *
 * Events and answers of one QMP connection come in the order in which things happened: a client that has an answer has seen
 * every event from before it.
 */
import * as z from '../zod.js';
import type { QmpClient, QmpEvent } from './qmp.js';

interface Cancellable {
  readonly signal?: AbortSignal | undefined;
}

/** What is known of a VM. */
export interface Guest {
  /** Its CPUs run, or would if QEMU's migration had not stopped them. A VM that sleeps is one that runs. */
  readonly live: boolean;
  /** It sleeps (S3). */
  readonly suspended: boolean;
  /** How often it was reset since it is watched. */
  readonly resets: number;
  /** How often its CPUs began to run since it is watched. */
  readonly resumes: number;
  /** Why it does not run on, as a sentence's beginning (`the guest powered off`); undefined while it can. */
  readonly ended: string | undefined;
  /** QEMU's ids of devices that were removed from it. */
  readonly removed: ReadonlySet<string>;
}

/** QEMU's run states of a VM whose CPUs its migration has stopped: they tell nothing of what the VM did before. */
const HELD: readonly string[] = ['finish-migrate', 'postmigrate', 'inmigrate'];
/** Run states of a VM that is to run, or of one that can be resumed. */
const LIVE: readonly string[] = ['running', 'suspended'];
const PAUSED: readonly string[] = ['paused', 'prelaunch'];

/** Run states of a VM that has ended or failed. Others are those of a debugger, and of snapshots: the VM was stopped for a while. */
const ENDED: Readonly<Record<string, string>> = {
  shutdown: 'the guest powered off',
  'guest-panicked': 'the guest panicked',
  'internal-error': 'QEMU stopped the VM with an internal error',
  'io-error': 'QEMU stopped the VM because a disk of it failed',
  watchdog: 'the watchdog of the VM expired and stopped it',
};

/** QEMU's ShutdownCause, as events name it. */
const CAUSES: Readonly<Record<string, string>> = {
  'guest-shutdown': 'the guest powered off',
  'guest-reset': 'the guest rebooted, and its QEMU ends then (-no-reboot)',
  'guest-panic': 'the guest panicked',
  'host-qmp-quit': 'QEMU was asked to quit',
  'host-qmp-system-reset': 'the VM was reset, and its QEMU ends then (-no-reboot)',
  'host-signal': 'QEMU was ended by a signal',
  'host-error': 'QEMU ended because of an error',
};

export const initialGuest: Guest = {
  live: false,
  suspended: false,
  resets: 0,
  resumes: 0,
  ended: undefined,
  removed: new Set(),
};

/** What an event makes of it. STOP says nothing by itself: see {@link guestInState}. */
export function guestAfter(guest: Guest, { name, data }: Pick<QmpEvent, 'name' | 'data'>): Guest {
  switch (name) {
    case 'RESUME':
      return { ...guest, live: true, resumes: guest.resumes + 1, ended: undefined };
    case 'SUSPEND':
      return { ...guest, suspended: true };
    case 'WAKEUP':
      return { ...guest, suspended: false };
    case 'RESET':
      return { ...guest, resets: guest.resets + 1, suspended: false };
    case 'SHUTDOWN':
      return {
        ...guest,
        ended: guest.ended ?? CAUSES[String(data.reason)] ?? `the VM ended (${data.reason})`,
      };
    case 'GUEST_PANICKED':
      return data.action === 'run' ? guest : { ...guest, ended: ENDED['guest-panicked'] };
    case 'DEVICE_DELETED':
      if (typeof data.device !== 'string') return guest;
      return { ...guest, removed: new Set([...guest.removed, data.device]) };
    default:
      return guest;
  }
}

/** What an answer of query-status makes of it. */
export function guestInState(guest: Guest, status: string): Guest {
  if (HELD.includes(status)) return guest;
  if (LIVE.includes(status)) return { ...guest, live: true, suspended: status === 'suspended' };
  const ended = guest.ended ?? ENDED[status];
  return { ...guest, live: false, suspended: false, ended: PAUSED.includes(status) ? guest.ended : ended };
}

const RunState = z.object({ status: z.string() });

/** Follows a VM from its creation on. */
export class GuestWatch {
  /** Called when something has changed. */
  onChange: (() => void) | undefined;
  readonly #qmp: QmpClient;
  readonly #end: () => void;
  #guest = initialGuest;
  #asking: Promise<void> = Promise.resolve();

  private constructor(qmp: QmpClient) {
    this.#qmp = qmp;
    this.#end = qmp.onEvent((event) => {
      const next = guestAfter(this.#guest, event);
      if (event.name === 'STOP') this.#ask();
      this.#set(next);
    });
  }

  /** Resolves when the VM's state at the beginning is known. */
  static async begin(qmp: QmpClient, options: Cancellable = {}): Promise<GuestWatch> {
    const watch = new GuestWatch(qmp);
    try {
      await watch.look(options);
      return watch;
    } catch (error) {
      watch.close();
      throw error;
    }
  }

  get guest(): Guest {
    return this.#guest;
  }

  /** Asks QEMU; every event from before its answer has been seen then. @returns QEMU's name of the run state */
  async look({ signal }: Cancellable = {}): Promise<string> {
    const { status } = await this.#qmp.execute('query-status', { schema: RunState, signal });
    this.#set(guestInState(this.#guest, status));
    return status;
  }

  /** Settles when it is known who stopped the CPUs, if they have stopped. */
  settled(): Promise<void> {
    return this.#asking;
  }

  close(): void {
    this.#end();
  }

  #ask(): void {
    // QEMU's own migration stops the VM without a gap in which it would answer: then the answer is one of HELD.
    const asked = this.look().then(
      () => {},
      () => {
        // The connection is lost, which the next command to QEMU finds out.
      },
    );
    this.#asking = Promise.all([this.#asking, asked]).then(() => {});
  }

  #set(guest: Guest): void {
    if (guest === this.#guest) return;
    this.#guest = guest;
    this.onChange?.();
  }
}
