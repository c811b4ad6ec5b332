// SPDX-License-Identifier: Apache-2.0
/**
 * Whether a path may be written to: what is there is looked at first, and nothing is touched that somebody uses or that is
 * not what is written. `--force` overrides that.
 */

import {
  closeSync,
  constants,
  fstatSync,
  lstatSync,
  openSync,
  readSync,
  type Stats,
  statSync,
} from 'node:fs';
import { dirname } from 'node:path';
import { endOfLink } from '../../end-of-link.js';
import { DevstateError } from '../../errors.js';
import {
  detectContent,
  FOREIGN_KINDS,
  hasMagic,
  recognise,
  SIGNATURE_LENGTH,
  saysWhat,
} from '../../formats/index.js';
import { Errno, LockType, native, whySystem } from '../../native/index.js';
import { isVmContent } from './wrong-file.js';

/** What is written to a path, and so what may be replaced there without `--force`. */
export type Written =
  /** A blob of ours. */
  | 'blob'
  /** The bytes of a foreign device's state. */
  | 'device-stream'
  /** QEMU's list of a cpr-transfer. */
  | 'cpr-list'
  /** Whatever the caller makes: only what is in use and what is no file is refused. */
  | 'any'
  /** Lines are appended. */
  | 'log';

export interface TargetOptions {
  readonly written: Written;
  /** Write although something is there that is not what is written, or that is in use. */
  readonly force?: boolean | undefined;
  /** Files that are read for what is written: not to be replaced by it. */
  readonly inputs?: readonly string[] | undefined;
}

/** Where bytes go, found safe. */
export interface Target {
  /** As the user named it, or the end of the link that they named. */
  readonly path: string;
  /** `stream`: a pipe or a device, written in place. `stdout`: the file that stdout leads to already. */
  readonly kind: 'new' | 'replace' | 'stream' | 'stdout';
  /** What is there now. */
  readonly before: Stats | undefined;
  /** What `--force` destroys, a sentence each. */
  readonly warnings: readonly string[];
}

/** @throws DEVSTATE_E_OUTPUT with the reason; nothing has been touched then */
export function findTarget(named: string, options: TargetOptions): Target {
  try {
    return examine(named, options);
  } catch (cause) {
    if (cause instanceof DevstateError) throw cause;
    throw refused(named, whySystem(cause), cause);
  }
}

function examine(named: string, options: TargetOptions): Target {
  const path = endOfLink(named);
  const before = statSync(path, { throwIfNoEntry: false });
  if (before === undefined) {
    if (statSync(dirname(path), { throwIfNoEntry: false }) === undefined)
      throw refused(named, `there is no folder ${dirname(path)}; make it first`);
    return { path, kind: 'new', before, warnings: [] };
  }
  if (isStdout(before)) return { path, kind: 'stdout', before, warnings: [] };
  if (before.isDirectory()) throw refused(named, 'it is a folder; name a file in it');
  if (before.isSocket()) throw refused(named, 'a socket is there; choose another path');
  if (before.isFIFO()) return { path, kind: 'stream', before, warnings: [] };
  const { force = false } = options;
  const reason = reasonAgainst(path, before, options);
  if (reason !== undefined && !force) {
    throw refused(named, `${reason.why}; ${adviceOn(options, `: ${reason.lost}`)}`);
  }
  const warnings = reason === undefined ? [] : [`${path}: ${reason.why}; with --force, ${reason.lost}`];
  return { path, kind: before.isFile() ? 'replace' : 'stream', before, warnings };
}

/**
 * Opens a log, which is made if it is not there; what is there stays.
 * @throws DEVSTATE_E_OUTPUT for what is no text or is in use, and what open(2) says
 */
export function openForAppending(named: string): number {
  const { path, kind } = findTarget(named, { written: 'log' });
  const { O_WRONLY, O_APPEND, O_CREAT, O_EXCL, O_NOFOLLOW } = constants;
  // /dev/stdout and the like are links.
  if (kind === 'stream' || kind === 'stdout') return openSync(path, O_WRONLY | O_APPEND);
  return openSync(path, O_WRONLY | O_APPEND | O_NOFOLLOW | (kind === 'new' ? O_CREAT | O_EXCL : 0), 0o600);
}

/** Looks again, as late as can be: whether what is to be replaced is still what was found. @throws DEVSTATE_E_OUTPUT */
export function requireUnchanged({ path, before }: Target, options: TargetOptions): void {
  const now = lstatSync(path, { throwIfNoEntry: false });
  if (before === undefined || now === undefined) {
    if (before === now || before !== undefined) return;
    throw refused(path, 'it was made by somebody else meanwhile; choose another path');
  }
  const same = now.dev === before.dev && now.ino === before.ino;
  if (!same || now.size !== before.size || now.mtimeMs !== before.mtimeMs)
    throw refused(path, 'it was changed by somebody else meanwhile; choose another path');
  const reason = options.force === true ? undefined : reasonAgainst(path, now, options);
  if (reason !== undefined) throw refused(path, `${reason.why}; ${adviceOn(options)}`);
}

/** No command that appends to a log has `--force`. @param lost what that destroys */
function adviceOn({ written }: TargetOptions, lost = ''): string {
  return `choose another path${written === 'log' ? '' : `, or give --force${lost}`}`;
}

interface Reason {
  readonly why: string;
  /** What becomes of it if it is written all the same. */
  readonly lost: string;
}

/** Why what is at `path` is not to be written to; undefined if it may be. */
function reasonAgainst(
  path: string,
  info: Stats,
  { written, inputs = [] }: TargetOptions,
): Reason | undefined {
  if (info.isBlockDevice()) {
    return { why: 'it is a block device', lost: 'what is stored on it is overwritten' };
  }
  if (info.isCharacterDevice()) {
    return isPlainDevice(info.rdev)
      ? undefined
      : { why: 'it is a character device that is no terminal', lost: 'the bytes go to that device' };
  }
  const { O_RDONLY, O_NONBLOCK, O_NOFOLLOW } = constants;
  let fd: number;
  try {
    fd = openSync(path, O_RDONLY | O_NONBLOCK | O_NOFOLLOW);
  } catch (error) {
    return { why: `what is there cannot be looked at: ${whySystem(error)}`, lost: 'it is replaced unseen' };
  }
  try {
    const found = fstatSync(fd);
    if (isLocked(fd)) {
      const lost =
        written === 'log'
          ? 'lines are written into it'
          : 'the name leads to the new file, and what the process still writes is lost when it ends';
      return { why: 'another process has it open and locked: it is in use', lost };
    }
    const input = inputs.find((name) => isSameFile(name, found));
    if (input !== undefined) {
      return { why: 'it is the file that is read', lost: 'it is replaced by what is made of it' };
    }
    if (found.size === 0 || written === 'any') return undefined;
    const what = unlikeWritten(headOf(fd, found.size), written);
    if (what === undefined) return undefined;
    const lost = written === 'log' ? 'lines are appended to it' : 'it is replaced';
    return { why: `it is ${what}, not ${NAMES[written]}`, lost };
  } finally {
    closeSync(fd);
  }
}

const NAMES: Readonly<Record<Exclude<Written, 'any'>, string>> = {
  blob: 'a saved device state, which is what is written',
  'device-stream': "a foreign device's state, which is what is written",
  'cpr-list': "QEMU's list of a cpr-transfer, which is what is written",
  log: 'text, which is what is appended',
};

/** What a file is, if it is not what is written. */
function unlikeWritten(head: Uint8Array, written: Exclude<Written, 'any'>): string | undefined {
  if (hasMagic(head)) return written === 'blob' ? undefined : 'a saved device state';
  const content = detectContent(head);
  if (written === 'cpr-list' && content?.name === 'qemu-cpr') return undefined;
  if (written === 'device-stream' && content !== undefined && !isVmContent(content.name)) return undefined;
  const recognised = recognise(head);
  if (written === 'log' && recognised?.signature.group === 'text') return undefined;
  return saysWhat(head, FOREIGN_KINDS) ?? 'a file of an unknown kind';
}

/** Whether an open file other than this one holds a lock on it, of whichever kind. */
function isLocked(fd: number): boolean {
  const owner = native.testLock(fd, LockType.write, 0, 0);
  if (owner >= 0 && owner !== LockType.unlocked) return true;
  // Given up when the caller closes it.
  return native.tryFlock(fd) === -Errno.EAGAIN;
}

function headOf(fd: number, size: number): Uint8Array {
  const head = new Uint8Array(Math.min(size, SIGNATURE_LENGTH));
  let done = 0;
  while (done < head.length) {
    const count = readSync(fd, head, done, head.length - done, done);
    if (count === 0) break;
    done += count;
  }
  return head.subarray(0, done);
}

/** `/dev/stdout` with stdout redirected: that file is open already, and is not to be replaced under its name. */
function isStdout(info: Stats): boolean {
  try {
    const stdout = fstatSync(1);
    return stdout.isFile() && stdout.dev === info.dev && stdout.ino === info.ino;
  } catch {
    return false;
  }
}

function isSameFile(name: string, info: Stats): boolean {
  try {
    const other = name === '-' ? fstatSync(0) : statSync(name);
    return other.dev === info.dev && other.ino === info.ino;
  } catch {
    return false;
  }
}

/** Majors of Linux whose minors are terminals, and the files of major 1 that store nothing. */
const TERMINALS: readonly number[] = [4, 5, ...Array.from({ length: 8 }, (_, index) => 136 + index)];
const MEMORY_MAJOR = 1;
/** null, zero, full. */
const HARMLESS: readonly number[] = [3, 5, 7];

function isPlainDevice(device: number): boolean {
  const major = (device >>> 8) & 0xfff;
  const minor = device & 0xff;
  return TERMINALS.includes(major) || (major === MEMORY_MAJOR && HARMLESS.includes(minor));
}

function refused(path: string, why: string, cause?: unknown): DevstateError {
  return new DevstateError('DEVSTATE_E_OUTPUT', `cannot write ${path}: ${why}`, { cause });
}
