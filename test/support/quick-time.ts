// SPDX-License-Identifier: Apache-2.0
/**
 * Time that passes when there is nothing else to do, for tests of what waits for a time. A pause between two looks ends at
 * the next turn of the loop; a limit, of a second or more, when nothing has happened for a while: soon, once the test
 * says that somebody keeps silent. `performance.now()` is as late then as it would have been.
 *
 * Not for what other processes do.
 */

/** A limit, ms: what is shorter is a pause. */
const LIMIT_MS = 1000;
/** Real time without anything that happened, ms, and turns of the loop, until the next limit is over. */
const QUIET_MS = 3;
const QUIET_TURNS = 10;
/** Real time in which nothing happens until a limit ends although no one is known to keep silent; and until no one can be waiting for one, ms. */
const IDLE_MS = 2000;
const STALLED_MS = 20_000;

/** By how much pauses are longer while somebody keeps silent: who asks again and again is told so until its limit is over. */
const LONGER_PAUSES = 20;

interface Timer {
  readonly due: number;
  readonly fire: () => void;
}

const real = {
  setTimeout: globalThis.setTimeout,
  clearTimeout: globalThis.clearTimeout,
  now: performance.now.bind(performance),
  timeout: AbortSignal.timeout,
};

export class QuickTime {
  #passed = 0;
  #activity = 0;
  #hurries = false;
  #ended = false;
  #onStall: () => void = () => {};
  /** Settles when somebody keeps silent, and is waited for without a limit. */
  readonly stalled = new Promise<void>((resolve) => {
    this.#onStall = resolve;
  });
  readonly #limits = new Set<Timer>();

  /** Takes the place of the clock and of timers until {@link end}. */
  constructor() {
    performance.now = () => this.#now();
    globalThis.setTimeout = this.#setTimeout as unknown as typeof setTimeout;
    globalThis.clearTimeout = ((timer: unknown) => {
      if (timer instanceof QuickTimer) timer.clear();
      else real.clearTimeout(timer as NodeJS.Timeout);
    }) as typeof clearTimeout;
    AbortSignal.timeout = (ms) => {
      const controller = new AbortController();
      const reason = new DOMException('The operation was aborted due to timeout', 'TimeoutError');
      this.#limit(ms, () => controller.abort(reason));
      return controller.signal;
    };
    void this.#endLimits();
  }

  end(): void {
    this.#ended = true;
    this.#limits.clear();
    performance.now = real.now;
    globalThis.setTimeout = real.setTimeout;
    globalThis.clearTimeout = real.clearTimeout;
    AbortSignal.timeout = real.timeout;
  }

  /** Something has happened: no one waits for a limit. */
  active(): void {
    this.#activity++;
  }

  /** Somebody keeps silent: from now on limits come to their ends soon, the earliest first. */
  hurry(): void {
    this.#hurries = true;
  }

  /** No one is waited for any more. */
  calm(): void {
    this.#hurries = false;
  }

  /** `ms` pass now: limits that end within them have ended, the earliest first. */
  pass(ms: number): void {
    const end = this.#now() + ms;
    for (const limit of [...this.#limits].sort((a, b) => a.due - b.due)) {
      if (limit.due > end) break;
      this.#limits.delete(limit);
      this.#reach(limit.due);
      limit.fire();
    }
    this.#reach(end);
  }

  async #endLimits(): Promise<void> {
    let since = real.now();
    while (!this.#ended) {
      const before = this.#activity;
      await new Promise((resolve) => real.setTimeout(resolve, QUIET_MS));
      // A process that was not running has missed what has come meanwhile.
      for (let turn = 0; turn < QUIET_TURNS; turn++) await new Promise((resolve) => setImmediate(resolve));
      if (this.#activity !== before) since = real.now();
      const idleMs = this.#activity === before ? real.now() - since : 0;
      if (idleMs < (this.#hurries ? QUIET_MS : IDLE_MS)) continue;
      const [next] = [...this.#limits].sort((a, b) => a.due - b.due);
      if (next === undefined) {
        if (idleMs > STALLED_MS) this.#onStall();
        continue;
      }
      since = real.now();
      this.#limits.delete(next);
      this.#reach(next.due);
      next.fire();
    }
  }

  #now(): number {
    return real.now() + this.#passed;
  }

  #reach(due: number): void {
    this.#passed = Math.max(this.#passed, due - real.now());
  }

  #limit(ms: number, fire: () => void): Timer {
    const timer = { due: this.#now() + ms, fire };
    this.#limits.add(timer);
    return timer;
  }

  readonly #setTimeout = (work: (...args: unknown[]) => void, ms = 0, ...args: unknown[]): QuickTimer => {
    const fire = (): void => work(...args);
    if (ms >= LIMIT_MS) {
      const timer = this.#limit(ms, fire);
      return new QuickTimer(() => this.#limits.delete(timer));
    }
    const due = this.#now() + ms * (this.#hurries ? LONGER_PAUSES : 1);
    const timer = real.setTimeout(() => {
      this.#reach(due);
      fire();
    }, 0);
    return new QuickTimer(() => real.clearTimeout(timer));
  };
}

/** What stands for a `NodeJS.Timeout`. */
class QuickTimer {
  readonly clear: () => void;

  constructor(clear: () => void) {
    this.clear = clear;
  }

  ref(): this {
    return this;
  }

  unref(): this {
    return this;
  }

  [Symbol.toPrimitive](): number {
    return 0;
  }
}
