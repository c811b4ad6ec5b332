// SPDX-License-Identifier: Apache-2.0
/**
 * Between the source and the destination of a cpr-transfer: takes the list of descriptors, looks through it, and passes it
 * on as it is, or not at all.
 *
 *     source                           here                                 destination
 *     connects, sends, half-closes ─▶  takes the whole list, checks it
 *                                      connects, sends, half-closes     ─▶  loads it, listens for the migration,
 *     HUP: connects for the migration ◀─ closes                         ◀─  closes
 *
 * The source's VM runs through all of this. A source takes the end of the connection for the sign that its destination
 * listens; if it finds that it does not, its migration has failed and the VM runs on. So to refuse is to close.
 */
import { asDevstateError, DevstateError } from '../../errors.js';
import type { CprDecoderOptions, CprVfioDevice } from '../../formats/index.js';
import { connect, type Fd, Listener } from '../../transport/index.js';
import { checkCprState, type DescribedCprDescriptor } from './cpr-checks.js';
import { type DescriptorKind, describeDescriptor } from './descriptor-kind.js';
import { CprDestinationEnd } from './destination-end.js';
import { CprSourceEnd } from './source-end.js';

export interface CprRelayOptions extends CprDecoderOptions {
  /** Where the source connects. */
  readonly listenPath: string;
  /** Where the destination listens. */
  readonly forwardPath: string;
  /** Names, or names and ids (`NAME:ID`), of descriptors that must be in the list. */
  readonly requirements?: readonly string[];
  /** Time from the source's connection until the destination has loaded the list, ms. */
  readonly timeoutMs: number;
  /** Aborts waiting for a source; afterwards, refuses. */
  readonly signal?: AbortSignal;
  /** Called when the source may connect. */
  readonly onListening?: () => void;
}

/** What came of a list. */
export interface CprReport {
  /** Whether the destination was given the list and closed the channel, as it does when it has loaded it. */
  readonly forwarded: boolean;
  readonly version: number | null;
  /** In the list's order. */
  readonly descriptors: readonly DescribedCprDescriptor[];
  readonly vfioDevices: readonly CprVfioDevice[];
  /** The rest of the list, if it is of a kind that is not known here; its descriptors have no names. */
  readonly unknown: {
    readonly reason: string;
    readonly offset: number;
    readonly descriptors: readonly DescriptorKind[];
  } | null;
  /** What is wrong with the list; it is then not forwarded. */
  readonly reasons: readonly string[];
  /** Why it was not forwarded. */
  readonly error: DevstateError | null;
  /** The list's bytes, as far as they came. */
  readonly stream: Uint8Array;
}

/**
 * Takes one list at `listenPath` and forwards it. What is wrong with the list or with one of the ends is the report's
 * `error`: DEVSTATE_E_CPR_REFUSED, DEVSTATE_E_CONTENT_…, DEVSTATE_E_CONNECT, DEVSTATE_E_CPR_CHANNEL, DEVSTATE_E_TIMEOUT
 * or DEVSTATE_E_CANCELLED. The source then runs on, and the destination ends.
 * @throws DEVSTATE_E_ADDRESS_IN_USE, DEVSTATE_E_SYSTEM, and DEVSTATE_E_CANCELLED before a source has connected
 */
export async function relayCprChannel(options: CprRelayOptions): Promise<CprReport> {
  const source = new CprSourceEnd(await acceptSource(options), options);
  const deadline = new Deadline(options);
  let found: FoundDescriptors = { descriptors: [], unknown: null };
  let reasons: readonly string[] = [];
  let error: DevstateError | null = null;
  try {
    await deadline.bound(source.complete);
    found = await deadline.bound(describeAll(source));
    reasons = checkCprState(found.descriptors, source.state.vfioDevices, options.requirements ?? []);
    if (reasons.length > 0)
      throw new DevstateError('DEVSTATE_E_CPR_REFUSED', `the list is refused: ${reasons.join('; ')}`);
    await forward(source, options.forwardPath, deadline);
  } catch (cause) {
    error = asDevstateError(cause);
    await endDestination(options.forwardPath);
  } finally {
    deadline.clear();
    source.close();
  }
  const { version = null, vfioDevices } = source.state;
  return { forwarded: error === null, version, ...found, vfioDevices, reasons, error, stream: source.stream };
}

/** One connection; the path is gone when it is there. */
async function acceptSource({ listenPath, signal, onListening }: CprRelayOptions): Promise<Fd> {
  if (signal?.aborted) throw cancelled();
  return new Promise<Fd>((resolve, reject) => {
    const listener = Listener.listen(listenPath, (fd) => {
      // More may have come with the first.
      if (listening) resolve(fd);
      else fd.close();
      end();
    });
    let listening = true;
    const abort = (): void => {
      end();
      reject(cancelled());
    };
    const end = (): void => {
      listening = false;
      listener.close();
      signal?.removeEventListener('abort', abort);
    };
    signal?.addEventListener('abort', abort);
    onListening?.();
  });
}

type FoundDescriptors = Pick<CprReport, 'descriptors' | 'unknown'>;

async function describeAll(source: CprSourceEnd): Promise<FoundDescriptors> {
  const kinds: DescriptorKind[] = [];
  for (const fd of source.descriptors) kinds.push(await describeDescriptor(fd));
  const { state, unknown } = source;
  const descriptors = state.descriptors.map(({ name, id }, i) => ({ name, id, descriptor: kinds[i]! }));
  const rest = kinds.slice(descriptors.length);
  return {
    descriptors,
    unknown: unknown === undefined ? null : { ...unknown, descriptors: rest },
  };
}

async function forward(source: CprSourceEnd, path: string, deadline: Deadline): Promise<void> {
  const destination = new CprDestinationEnd(await connect(path, 0));
  try {
    await deadline.bound(destination.send(source.pieces));
    source.releaseDescriptors();
    await deadline.bound(destination.loaded);
  } catch (cause) {
    if (deadline.passed) throw cause;
    const message =
      'the destination closed the CPR channel before it had read the list; see what its QEMU says';
    throw new DevstateError('DEVSTATE_E_CPR_CHANNEL', message, { cause });
  } finally {
    destination.close();
  }
}

/** Tells a destination that waits that there will be nothing: it gives up. One that is gone already has. */
async function endDestination(path: string): Promise<void> {
  try {
    (await connect(path, 0)).close();
  } catch {}
}

function cancelled(): DevstateError {
  return new DevstateError('DEVSTATE_E_CANCELLED', 'the CPR channel was cancelled');
}

/** Bounds what is waited for, by time and by a signal. */
class Deadline {
  readonly #over: Promise<never>;
  readonly #clear: () => void;
  passed = false;

  constructor({ timeoutMs, signal }: CprRelayOptions) {
    let end = (_: DevstateError): void => {};
    this.#over = new Promise((_, reject) => {
      end = (error) => {
        this.passed = true;
        reject(error);
      };
    });
    this.#over.catch(() => {});
    const late = `no cpr-transfer within ${timeoutMs / 1000} s; the source runs on`;
    const timer = setTimeout(() => end(new DevstateError('DEVSTATE_E_TIMEOUT', late)), timeoutMs);
    const abort = (): void => end(cancelled());
    signal?.addEventListener('abort', abort);
    if (signal?.aborted) abort();
    this.#clear = () => {
      clearTimeout(timer);
      signal?.removeEventListener('abort', abort);
    };
  }

  bound<T>(work: Promise<T>): Promise<T> {
    return Promise.race([work, this.#over]);
  }

  clear(): void {
    this.#clear();
  }
}
