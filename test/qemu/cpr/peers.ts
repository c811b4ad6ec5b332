// SPDX-License-Identifier: Apache-2.0
/** The two ends of a CPR channel in the place of QEMUs: a source that sends any bytes, a destination that keeps what it is given. */
import { existsSync, fstatSync } from 'node:fs';
import { join } from 'node:path';
import { type CprRelayOptions, type CprReport, relayCprChannel } from '../../../src/qemu/index.js';
import { closeAll, connect, type Fd, Listener, StreamSocket } from '../../../src/transport/index.js';
import { cprState, type Device, type Entry, entry } from '../../formats/qemu-cpr/states.js';
import { socketFolder, type Test, until } from '../../support/served.js';

export { openFds } from '../../support/closes.js';
/** Which file a descriptor is, whatever its number. */
export const inodeOf = (fd: Fd): string => {
  const { dev, ino } = fstatSync(fd.number);
  return `${dev}:${ino}`;
};

export interface Sent {
  readonly bytes: Uint8Array;
  readonly fds?: readonly Fd[];
}

/** As QEMU sends a list: what comes before a descriptor, then the byte that carries it. */
export function sending(entries: readonly Entry[], fds: readonly Fd[], devices?: readonly Device[]): Sent[] {
  const whole = cprState(entries, devices);
  const sent: Sent[] = [];
  let at = 0;
  let end = 8;
  for (const [index, one] of entries.entries()) {
    end += entry(one).length;
    sent.push(
      { bytes: whole.subarray(at, end - 1) },
      { bytes: whole.subarray(end - 1, end), fds: [fds[index]!] },
    );
    at = end;
  }
  return [...sent, { bytes: whole.subarray(at) }];
}

export class Source {
  /** Settles when the other end closes. */
  readonly released: Promise<void>;
  isReleased = false;
  readonly socket: StreamSocket;
  readonly #path: string;

  private constructor(fd: Fd, path: string) {
    this.#path = path;
    let release = (): void => {};
    this.released = new Promise((resolve) => {
      release = () => {
        this.isReleased = true;
        resolve();
      };
    });
    const handler = { data: () => {}, ended: release, lost: release };
    this.socket = new StreamSocket(fd, handler, { maxQueuedBytes: 8 << 20 });
  }

  static async connect(path: string): Promise<Source> {
    return new Source(await connect(path), path);
  }

  /** Resolves when the other end has taken the connection: it takes no other. */
  async accepted(): Promise<void> {
    await until(() => !existsSync(this.#path));
  }

  async send(sent: readonly Sent[], { end = true } = {}): Promise<void> {
    for (const { bytes, fds } of sent) this.socket.send(bytes, fds);
    await this.socket.drained();
    if (end) this.socket.endSending();
  }
}

export interface DestinationOptions {
  /** Waited for before it closes, when it has everything. */
  readonly loading?: Promise<void>;
  /** It closes as soon as it has been connected to. */
  readonly dies?: boolean;
}

export class Destination {
  readonly bytes: Uint8Array[] = [];
  /** Which files the descriptors are that came, by {@link inodeOf}. */
  readonly files: string[] = [];
  /** Settles when a connection has ended. */
  readonly ended: Promise<void>;
  connections = 0;
  readonly #listener: Listener;
  readonly #sockets: StreamSocket[] = [];

  constructor(path: string, { loading = Promise.resolve(), dies = false }: DestinationOptions = {}) {
    let end = (): void => {};
    this.ended = new Promise((resolve) => (end = resolve));
    this.#listener = Listener.listen(path, (fd) => {
      this.connections++;
      if (dies) {
        fd.close();
        end();
        return;
      }
      const socket = new StreamSocket(
        fd,
        {
          data: (bytes, fds) => {
            this.bytes.push(bytes.slice());
            this.files.push(...fds.map(inodeOf));
          },
          ended: () => {
            void loading.then(() => socket.close());
            end();
          },
          lost: end,
        },
        { maxQueuedBytes: 0 },
      );
      this.#sockets.push(socket);
    });
  }

  close(): void {
    this.#listener.close();
    for (const socket of this.#sockets) socket.close();
  }
}

export interface Attempt {
  readonly report: CprReport;
  readonly source: Source;
  readonly destination: Destination;
}

/** One list from a source to a destination, through the relay; closed with `t`. */
export async function attempt(
  t: Test,
  send: (source: Source) => Promise<void>,
  options: Partial<CprRelayOptions> & { destination?: DestinationOptions | null } = {},
): Promise<Attempt> {
  const folder = socketFolder(t);
  const [listenPath, forwardPath] = [join(folder, 'listen'), join(folder, 'forward')];
  const destination = new Destination(forwardPath, options.destination ?? {});
  if (options.destination === null) destination.close();
  const { destination: _, ...given } = options;
  let listening = (): void => {};
  const ready = new Promise<void>((resolve) => (listening = resolve));
  const relayed = relayCprChannel({
    listenPath,
    forwardPath,
    timeoutMs: 20_000,
    onListening: listening,
    ...given,
  });
  await ready;
  const source = await Source.connect(listenPath);
  try {
    const [report] = await Promise.all([relayed, send(source)]);
    await source.released;
    if (options.destination !== null) await destination.ended;
    return { report, source, destination };
  } finally {
    source.socket.close();
    destination.close();
  }
}

/** Runs `work` with descriptors that it may use, closed afterwards. */
export async function withFds<T>(make: () => Fd, count: number, work: (fds: Fd[]) => Promise<T>): Promise<T> {
  const fds = Array.from({ length: count }, make);
  try {
    return await work(fds);
  } finally {
    closeAll(fds);
  }
}
