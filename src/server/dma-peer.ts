// SPDX-License-Identifier: Apache-2.0
/**
 * Guest memory by messages: DMA_READ and DMA_WRITE from server to client, on the connection itself or on the twin
 * socket of its own when that was negotiated.
 *
 * The first QEMUs with vfio-user have a count of 32 bits, which moves the data four bytes forward; their struct still
 * ends where the specified one does, so every message and every answer is as long as it should be, with four bytes of
 * padding behind the data, and an answer to a read does not show which layout it has:
 *
 *     specified            address u64, count u64, data             answer to a write: address, count
 *     QEMU's first         address u64, count u32, data, 4 bytes    answer to a write: a header alone
 *
 * QEMU 11.1 is as specified. Nothing in VERSION tells them apart, so a client that may be either is asked, before the
 * first transfer, to write no bytes: both take that, and the length of the answer tells.
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

/** The client's memory by messages (DMA_READ, DMA_WRITE): what a range without an fd is reached by. */
export interface DmaPeer {
  read(address: number, target: Uint8Array): Promise<void>;
  write(address: number, source: Uint8Array): Promise<void>;
}

/** A client that does not answer for so long is broken; QEMU itself gives us five seconds. */
const REPLY_TIMEOUT_MS = 30_000;

/** A message without its data, in either layout. */
const FIXED_LENGTH = HEADER_LENGTH + dmaTransferHeaderLength(64);
/** What makes the shorter layout as long as the other. */
const PADDING = new Uint8Array(dmaTransferHeaderLength(64) - dmaTransferHeaderLength(32));

interface Expected {
  readonly command: number;
  /** Where the data of a DMA_READ go, and in which layout they come. */
  readonly target: { readonly data: Uint8Array; readonly width: CountWidth } | undefined;
}

/** How a client takes our messages. A successor of this server continues with the same. */
export interface DmaTerms {
  readonly maxTransfer: number;
  /** Undefined until the client has shown it. */
  readonly width: CountWidth | undefined;
}

/** By what the client proposed in VERSION. */
export function proposedTerms({ minor, capabilities }: Version): DmaTerms {
  // QEMU proposes 0.0 and is alone in sending the 0.9.1 migration capability with it.
  const isQemu = minor === 0 && capabilities.migrationPageSize !== undefined;
  return {
    maxTransfer: Math.max(1, Math.min(capabilities.maxDataXferSize, MAX_DATA_XFER_SIZE)),
    width: isQemu ? undefined : 64,
  };
}

export class MessageDmaPeer implements DmaPeer {
  #socket: MessageSocket;
  #twin: MessageSocket | undefined;
  readonly #pending = new RequestTable<number>();
  readonly #expected = new Map<number, Expected>();
  readonly #maxTransfer: number;
  /** Undefined until the client has shown it. */
  #width: CountWidth | undefined;
  #probe: Promise<CountWidth> | undefined;
  #closed = false;

  constructor(socket: MessageSocket, terms: DmaTerms) {
    this.#socket = socket;
    this.#maxTransfer = terms.maxTransfer;
    this.#width = terms.width;
  }

  /** Opens the twin socket; returns the client's end, to be sent with the VERSION reply. */
  useTwinSocket(): Fd {
    const [ours, theirs] = socketPair();
    this.adoptTwinSocket(ours);
    return theirs;
  }

  /** For a successor. @throws RequestError EBUSY while the client owes us an answer */
  freeze(): { terms: DmaTerms; twin: Fd | undefined } {
    if (this.#pending.size > 0) throw new RequestError(Errno.EBUSY, 'the VMM owes the device an answer');
    return { terms: { maxTransfer: this.#maxTransfer, width: this.#width }, twin: this.#twin?.duplicate() };
  }

  /** Continues with the twin socket that a predecessor opened. Takes it. */
  adoptTwinSocket(ours: Fd): void {
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

  async #transfer(command: number, address: number, data: Uint8Array): Promise<void> {
    if (this.#width === undefined) {
      this.#probe ??= this.#askWidth(address);
      this.#width = await this.#probe;
    }
    const width = this.#width;
    const head = transferHead(address, data.length, width);
    const padding = width === 64 ? [] : [PADDING];
    if (command === Command.DMA_WRITE) await this.#request(command, [head, data, ...padding]);
    else await this.#request(command, [head, ...padding], { data, width });
  }

  /** Which layout the client has, by a write of no bytes to an address that it has mapped. */
  async #askWidth(address: number): Promise<CountWidth> {
    const length = await this.#request(Command.DMA_WRITE, [transferHead(address, 0, 64)]).catch(
      (error: unknown) => {
        if (error instanceof RequestError && !this.#closed) return FIXED_LENGTH;
        throw error;
      },
    );
    return length === HEADER_LENGTH ? 32 : 64;
  }

  /** @returns the length of the reply */
  #request(command: number, parts: Uint8Array[], target?: Expected['target']): Promise<number> {
    if (this.#closed) return Promise.reject(goneError());
    let used = 0;
    const reply = this.#pending.request(commandName(command), REPLY_TIMEOUT_MS, (id) => {
      used = id;
      this.#expected.set(id, { command, target });
      const [head] = parts;
      const length = parts.reduce((sum, part) => sum + part.length, 0);
      if (head !== undefined) encodeHeader(viewOf(head), 0, id, command, length, HeaderFlag.TYPE_COMMAND);
      this.#socket.send(parts);
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
      if (expected.target !== undefined) takeData(frame, expected.target);
      this.#pending.resolve(id, frame.length);
    } catch (failure) {
      this.#pending.reject(id, failure as RequestError);
    }
    return true;
  }

  /** The client, or its twin socket, is gone: what waits fails, and what is asked for later as well. */
  close(): void {
    this.#closed = true;
    this.#twin?.close();
    this.#pending.rejectAll(goneError());
  }
}

/** The message up to its data, the header's fields yet to be filled in. */
function transferHead(address: number, count: number, width: CountWidth): Uint8Array {
  const head = new Uint8Array(HEADER_LENGTH + dmaTransferHeaderLength(width));
  encodeDmaTransfer(viewOf(head), HEADER_LENGTH, { address, count }, width);
  return head;
}

/** @throws RequestError */
function takeData(frame: Frame, { data, width }: { data: Uint8Array; width: CountWidth }): void {
  if (frame.length !== FIXED_LENGTH + data.length) {
    const payload = frame.length - HEADER_LENGTH;
    throw new RequestError(
      Errno.EPROTO,
      `DMA_READ of ${data.length} bytes was answered with ${payload} bytes of payload`,
    );
  }
  const start = HEADER_LENGTH + dmaTransferHeaderLength(width);
  data.set(frame.bytes.subarray(start, start + data.length));
}

function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
}

/**
 * For a server with a crash journal: an answer from the client that the server's successor gets is one that no one there
 * has asked for.
 */
export const noDmaByMessages: DmaPeer = {
  read: () => Promise.reject(needsFile()),
  write: () => Promise.reject(needsFile()),
};

function needsFile(): RequestError {
  return new RequestError(
    Errno.EFAULT,
    'with a crash journal, guest memory is reached only through its file',
  );
}

function goneError(): RequestError {
  return new RequestError(Errno.ENOTCONN, 'the VMM has closed the connection');
}
