// SPDX-License-Identifier: Apache-2.0
/**
 * A limit on log lines that repeat. A guest, VMM or manager can cause the same line as often as it likes: the first few are
 * written, the others are counted, and a summary says how many there were.
 *
 *     warn  DEVICE_RESET: not allowed                     five times
 *     warn  99995 more lines of manager 3 like "DEVICE_RESET: not allowed" in 10 s
 *
 * Lines are of one kind if they differ in numbers only. A kind is limited for each peer, and for all peers together, so that
 * a peer that connects again and again gains nothing.
 */

export type LogLevel = 'info' | 'warn' | 'error';

/** @param peer whose doing the line is, for example `manager 3`: it tells repeated lines apart, and is in their summary */
export type Log = (level: LogLevel, message: string, peer?: string) => void;

export interface RepeatLimit {
  /** Lines of a kind, of one peer, in a window. */
  readonly perPeer: number;
  /** Lines of a kind, of all peers, in a window. */
  readonly perKind: number;
  /** Kinds that are distinguished in a window; all further ones count as one. */
  readonly kinds: number;
  /** Length of a window, ms. A kind that repeats through a whole window stays limited in the next. */
  readonly windowMs: number;
}

const DEFAULT_LIMIT: RepeatLimit = { perPeer: 5, perKind: 20, kinds: 64, windowMs: 10_000 };

/** Characters of a message that tell kinds apart. A longer message may be mostly what a peer sent. */
const KIND_LENGTH = 160;
/** Longest line: what a peer sent may be in it. */
const MAX_LINE = 4096;

interface Kind {
  readonly peer: string;
  readonly budget: number;
  lines: number;
  /** Lines not written in this window, and one of them. */
  held: number;
  level: LogLevel;
  example: string;
}

/** Logs that are limited already. */
const limited = new WeakMap<Log, () => void>();

/** The same log with the limit. One that has a limit is returned as it is; without a log, lines are discarded. */
export function limitRepeats(log: Log | undefined, limit: RepeatLimit = DEFAULT_LIMIT): Log {
  if (log === undefined) return () => {};
  if (limited.has(log)) return log;
  const limiter = new Limiter(log, limit);
  const result: Log = (level, message, peer) => limiter.log(level, message, peer);
  limited.set(result, () => limiter.summarize());
  return result;
}

/** Marks a log whose owner limits it, or wants each line: {@link limitRepeats} returns it as it is. */
export function withoutLimit(log: Log): Log {
  limited.set(log, () => {});
  return log;
}

/** Writes the summaries that are due at the end of the window now: before a process ends. */
export function summarizeRepeats(log: Log): void {
  limited.get(log)?.();
}

class Limiter {
  readonly #write: Log;
  readonly #limit: RepeatLimit;
  readonly #kinds = new Map<string, Kind>();
  #timer: NodeJS.Timeout | undefined;
  #startedAt = 0;

  constructor(write: Log, limit: RepeatLimit) {
    this.#write = write;
    this.#limit = limit;
  }

  log(level: LogLevel, message: string, peer = ''): void {
    const line = message.length > MAX_LINE ? `${message.slice(0, MAX_LINE)}…` : message;
    const kindText = kindOf(level, message);
    const { perPeer, perKind } = this.#limit;
    const ofPeer = this.#kind(`${peer}\n${kindText}`, peer, perPeer);
    if (ofPeer.lines++ >= ofPeer.budget) {
      hold(ofPeer, level, line);
      return;
    }
    const ofAll = this.#kind(kindText, '', perKind);
    if (ofAll.lines++ >= ofAll.budget) {
      hold(ofAll, level, line);
      return;
    }
    this.#write(level, line);
  }

  #kind(key: string, peer: string, budget: number): Kind {
    const known = this.#kinds.get(key) ?? (this.#isFull ? this.#kinds.get(OTHERS) : undefined);
    if (known !== undefined) return known;
    const kind: Kind = { peer, budget, lines: 0, held: 0, level: 'info', example: '' };
    this.#kinds.set(this.#isFull ? OTHERS : key, kind);
    if (this.#timer === undefined) {
      this.#startedAt = performance.now();
      this.#timer = setInterval(() => this.#endWindow(), this.#limit.windowMs);
      this.#timer.unref();
    }
    return kind;
  }

  /** A kind has an entry for each peer and one for all of them. */
  get #isFull(): boolean {
    return this.#kinds.size >= 2 * this.#limit.kinds;
  }

  summarize(): void {
    const seconds = Math.max(1, Math.round((performance.now() - this.#startedAt) / 1000));
    for (const kind of this.#kinds.values()) {
      const { held, level, peer } = kind;
      if (held === 0) continue;
      kind.held = 0;
      const lines = `${held} more line${held === 1 ? '' : 's'}${peer === '' ? '' : ` of ${peer}`}`;
      this.#write(level, `${lines} like "${kind.example}" in ${seconds} s`);
    }
  }

  #endWindow(): void {
    for (const [key, kind] of this.#kinds) {
      // Still repeated: the next window has a summary only.
      if (kind.held > 0) kind.lines = kind.budget;
      else this.#kinds.delete(key);
    }
    this.summarize();
    this.#startedAt = performance.now();
    if (this.#kinds.size > 0) return;
    clearInterval(this.#timer);
    this.#timer = undefined;
  }
}

function hold(kind: Kind, level: LogLevel, line: string): void {
  kind.held++;
  kind.level = level;
  kind.example = line;
}

const OTHERS = 'others';

/** The message without its numbers. */
function kindOf(level: LogLevel, message: string): string {
  return `${level} ${message.slice(0, KIND_LENGTH).replace(/0x[0-9a-f]+|\d+/gi, '#')}`;
}
