// SPDX-License-Identifier: Apache-2.0
/**
 * Guest memory by messages: DMA_READ and DMA_WRITE from server to client, on the connection itself or on the twin
 * socket of its own when that was negotiated.
 *
 * QEMU (seen up to 11.1) lays these messages out with a 32-bit count and so puts the data four bytes earlier, and
 * answers a write with a header alone. It is recognised by the version it proposes, and any client by the length of its
 * first answer to a read.
 */

import { DevstateError } from '../errors.js';
import { type Fd, type Frame, MessageSocket, RequestTable, socketPair } from '../transport/index.js';
import {
  Command,
  type CountWidth,
  commandName,
  dmaTransferHeaderLength,
  Errno,
  encodeDmaTransfer,
  encodeHeader,
  HEADER_LENGTH,
  HeaderFlag,
  messageCommand,
  messageError,
  messageFlags,
  messageId,
  RequestError,
  type Version,
  vfioUserFraming,
} from '../wire/index.js';
import { MAX_DATA_XFER_SIZE, MAX_MESSAGE_LENGTH } from './capabilities.js';
import type { DmaPeer } from './served-device.js';

/** A client that does not answer for so long is broken; QEMU itself gives us five seconds. */
const REPLY_TIMEOUT_MS = 30_000;

interface Expected {
  readonly command: number;
  /** Where the data of a DMA_READ go. */
  readonly target: Uint8Array | undefined;
}

export class MessageDmaPeer implements DmaPeer {
  #socket: MessageSocket;
  #twin: MessageSocket | undefined;
  readonly #pending = new RequestTable<void>();
  readonly #expected = new Map<number, Expected>();
  readonly #maxTransfer: number;
  #width: CountWidth;
  #closed = false;

  constructor(socket: MessageSocket, proposal: Version) {
    this.#socket = socket;
    this.#maxTransfer = Math.max(1, Math.min(proposal.capabilities.maxDataXferSize, MAX_DATA_XFER_SIZE));
    // QEMU proposes 0.0 and is alone in sending the 0.9.1 migration capability with it.
    const isQemu = proposal.minor === 0 && proposal.capabilities.migrationPageSize !== undefined;
    this.#width = isQemu ? 32 : 64;
  }

  /** Opens the twin socket; returns the client's end, to be sent with the VERSION reply. */
  useTwinSocket(): Fd {
    const [ours, theirs] = socketPair();
    const limits = { maxMessageLength: MAX_MESSAGE_LENGTH, maxFds: 0, maxQueuedBytes: 64 * 1024 * 1024 };
    this.#twin = new MessageSocket(ours, vfioUserFraming, limits, {
      message: (frame) => {
        const isReply = (messageFlags(frame.view) & HeaderFlag.TYPE_MASK) === HeaderFlag.TYPE_REPLY;
        if (!isReply || !this.reply(frame)) {
          throw new DevstateError(
            'DEVSTATE_E_PROTOCOL',
            'only replies to our commands belong on the twin socket',
          );
        }
      },
      closed: () => this.close(),
    });
    this.#socket = this.#twin;
    return theirs;
  }

  async read(address: number, target: Uint8Array): Promise<void> {
    for (let done = 0; done < target.length; ) {
      const count = Math.min(target.length - done, this.#maxTransfer);
      await this.#transfer(Command.DMA_READ, address + done, target.subarray(done, done + count));
      done += count;
    }
  }

  async write(address: number, source: Uint8Array): Promise<void> {
    for (let done = 0; done < source.length; ) {
      const count = Math.min(source.length - done, this.#maxTransfer);
      await this.#transfer(Command.DMA_WRITE, address + done, source.subarray(done, done + count));
      done += count;
    }
  }

  #transfer(command: number, address: number, data: Uint8Array): Promise<void> {
    if (this.#closed) return Promise.reject(goneError());
    const isRead = command === Command.DMA_READ;
    const head = new Uint8Array(HEADER_LENGTH + dmaTransferHeaderLength(isRead ? 64 : this.#width));
    const view = new DataView(head.buffer);
    // A read's request fits both layouts when it is written with the longer one.
    encodeDmaTransfer(view, HEADER_LENGTH, { address, count: data.length }, isRead ? 64 : this.#width);
    let used = 0;
    const reply = this.#pending.request(commandName(command), REPLY_TIMEOUT_MS, (id) => {
      used = id;
      this.#expected.set(id, { command, target: isRead ? data : undefined });
      encodeHeader(view, 0, id, command, head.length + (isRead ? 0 : data.length), HeaderFlag.TYPE_COMMAND);
      this.#socket.send(isRead ? head : [head, data]);
    });
    return reply.finally(() => this.#expected.delete(used));
  }

  /** Takes a reply. @returns false when nothing was asked under its id */
  reply(frame: Frame): boolean {
    const id = messageId(frame.view);
    const expected = this.#expected.get(id);
    if (expected === undefined || messageCommand(frame.view) !== expected.command) return false;
    const error =
      (messageFlags(frame.view) & HeaderFlag.ERROR) !== 0 ? messageError(frame.view) || Errno.EINVAL : 0;
    if (error !== 0) {
      this.#pending.reject(id, new RequestError(error, `the VMM refused ${commandName(expected.command)}`));
      return true;
    }
    try {
      if (expected.target !== undefined) this.#takeData(frame, expected.target);
      this.#pending.resolve(id, undefined);
    } catch (failure) {
      this.#pending.reject(id, failure as RequestError);
    }
    return true;
  }

  #takeData(frame: Frame, target: Uint8Array): void {
    const payload = frame.length - HEADER_LENGTH;
    // The length of the answer tells its layout, whatever the client was taken for.
    for (const width of [64, 32] as const) {
      const start = dmaTransferHeaderLength(width);
      if (payload !== start + target.length) continue;
      this.#width = width;
      target.set(frame.bytes.subarray(HEADER_LENGTH + start, frame.length));
      return;
    }
    throw new RequestError(
      Errno.EPROTO,
      `DMA_READ of ${target.length} bytes was answered with ${payload} bytes of payload`,
    );
  }

  /** The client, or its twin socket, is gone: what waits fails, and what is asked for later as well. */
  close(): void {
    this.#closed = true;
    this.#twin?.close();
    this.#pending.rejectAll(goneError());
  }
}

function goneError(): RequestError {
  return new RequestError(Errno.ENOTCONN, 'the VMM has closed the connection');
}
