// SPDX-License-Identifier: Apache-2.0
/**
 * Between a manager and a device server: passes messages on as they are, with their fds, and lets one of the manager's
 * requests go wrong.
 *
 *     manager ──▶ tap ──▶ migration socket of a real server
 */
import {
  closeAll,
  connect,
  type Fd,
  type Frame,
  Listener,
  MessageSocket,
} from '../../src/transport/index.js';
import {
  commandName,
  Errno,
  encodeHeader,
  HEADER_LENGTH,
  HeaderFlag,
  messageCommand,
  messageFlags,
  messageId,
  vfioUserFraming,
} from '../../src/wire/index.js';

const LIMITS = { maxMessageLength: 64 * 2 ** 20, maxFds: 253, maxQueuedBytes: 256 * 2 ** 20 };

/**
 * What happens instead of what was asked for.
 *
 *     refuse    an error is the reply; nothing was done
 *     close     the connection ends before anything is done
 *     lose      it is done, and the connection ends in place of the reply
 *     exit      the server ends before anything is done
 *     hang      nothing is replied any more on this connection
 */
export type TapFault = 'refuse' | 'close' | 'lose' | 'exit' | 'hang';

export interface TappedRequest {
  readonly name: string;
  readonly index: number;
  /** How often this command came before. */
  readonly nth: number;
}

export class MessageTap {
  readonly path: string;
  readonly requests: TappedRequest[] = [];
  fault: (request: TappedRequest) => TapFault | undefined = () => undefined;
  before: (request: TappedRequest) => void = () => {};
  /** The server ends. */
  onExit: () => void = () => {};
  onSilence: () => void = () => {};
  onActivity: () => void = () => {};
  readonly #target: string;
  readonly #listener: Listener;
  readonly #sockets = new Set<MessageSocket>();
  readonly #counts = new Map<string, number>();
  /** Connections of managers. */
  clients = 0;
  /** No one else is served: who connects is sent away at once. */
  #isDeaf = false;
  /** The server has ended. */
  hasEnded = false;

  constructor(path: string, target: string) {
    this.path = path;
    this.#target = target;
    this.#listener = Listener.listen(path, (fd) => void this.#serve(fd));
  }

  set isDeaf(isDeaf: boolean) {
    this.#isDeaf = isDeaf;
    if (isDeaf) for (const socket of this.#sockets) socket.close();
  }

  close(): void {
    this.#listener.close();
    for (const socket of this.#sockets) socket.close();
  }

  async #serve(fd: Fd): Promise<void> {
    let upstream: Fd;
    if (this.#isDeaf) {
      fd.close();
      return;
    }
    try {
      upstream = await connect(this.#target);
    } catch {
      fd.close();
      return;
    }
    this.clients++;
    let lost = -1;
    let hangs = false;
    let isOver = false;
    const end = (): void => {
      if (isOver) return;
      isOver = true;
      this.clients--;
      for (const socket of [manager, server]) {
        this.#sockets.delete(socket);
        socket.close();
      }
    };
    const pass = (frame: Frame, to: MessageSocket): void => {
      this.onActivity();
      const fds = frame.fds.map((one) => one.take());
      to.send(frame.bytes.slice(0, frame.length), { fds });
      closeAll(fds);
    };
    const server: MessageSocket = new MessageSocket(upstream, vfioUserFraming, LIMITS, {
      message: (frame) => {
        const isReply = (messageFlags(frame.view) & HeaderFlag.TYPE_MASK) === HeaderFlag.TYPE_REPLY;
        if (isReply && messageId(frame.view) === lost) end();
        else if (!hangs) pass(frame, manager);
      },
      closed: end,
    });
    const manager: MessageSocket = new MessageSocket(fd, vfioUserFraming, LIMITS, {
      message: (frame) => {
        const name = commandName(messageCommand(frame.view));
        const nth = this.#counts.get(name) ?? 0;
        this.#counts.set(name, nth + 1);
        const request = { name, index: this.requests.length, nth };
        this.requests.push(request);
        this.before(request);
        if (hangs) return;
        const fault = this.fault(request);
        if (fault === 'refuse') refuse(manager, frame);
        else if (fault === 'close') end();
        else if (fault === 'exit') {
          this.hasEnded = true;
          this.onExit();
        } else if (fault === 'hang') {
          hangs = true;
          this.onSilence();
        } else {
          if (fault === 'lose') lost = messageId(frame.view);
          pass(frame, server);
        }
      },
      closed: end,
    });
    this.#sockets.add(manager).add(server);
  }
}

function refuse(manager: MessageSocket, { view }: Frame): void {
  const reply = new Uint8Array(HEADER_LENGTH);
  const flags = HeaderFlag.TYPE_REPLY | HeaderFlag.ERROR;
  encodeHeader(
    new DataView(reply.buffer),
    0,
    messageId(view),
    messageCommand(view),
    HEADER_LENGTH,
    flags,
    Errno.EIO,
  );
  manager.send(reply);
}
