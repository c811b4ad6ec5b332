// SPDX-License-Identifier: Apache-2.0
/** The server's commands to the client: DMA_READ and DMA_WRITE, for ranges that were mapped without an fd. */

import type { Frame } from '../transport/index.js';
import {
  Command,
  commandName,
  DEFAULT_MAX_DATA_XFER_SIZE,
  decodeDmaTransfer,
  dmaTransferHeaderLength,
  Errno,
  encodeDmaTransfer,
  HEADER_LENGTH,
  RequestError,
} from '../wire/index.js';

/** Serves the server's DMA_READ and DMA_WRITE, for ranges mapped without an fd. */
export interface DmaHandler {
  /** @throws RequestError to refuse */
  read(address: number, target: Uint8Array): void;
  write(address: number, source: Uint8Array): void;
}

/** The reply to a DMA command of the server, header left blank. @throws RequestError */
export function serveDma(command: number, frame: Frame, dma: DmaHandler | undefined): Uint8Array {
  if (dma === undefined || (command !== Command.DMA_READ && command !== Command.DMA_WRITE)) {
    throw new RequestError(Errno.ENOSYS, `${commandName(command)} is not served`);
  }
  const { address, count } = decodeDmaTransfer(frame.view, HEADER_LENGTH, frame.length, 64);
  const fixed = HEADER_LENGTH + dmaTransferHeaderLength(64);
  if (command === Command.DMA_WRITE) {
    if (frame.length - fixed !== count)
      throw new RequestError(Errno.EINVAL, `DMA_WRITE carries ${frame.length - fixed} bytes`);
    dma.write(address, frame.bytes.subarray(fixed, frame.length));
    return frame.bytes.slice(0, fixed);
  }
  if (count > DEFAULT_MAX_DATA_XFER_SIZE) throw new RequestError(Errno.E2BIG, `DMA_READ of ${count} bytes`);
  const reply = new Uint8Array(fixed + count);
  encodeDmaTransfer(new DataView(reply.buffer), HEADER_LENGTH, { address, count }, 64);
  dma.read(address, reply.subarray(fixed));
  return reply;
}
