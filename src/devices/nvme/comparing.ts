// SPDX-License-Identifier: Apache-2.0
/**
 * Compares the image with guest memory: one command at a time and in pieces, so that neither the time that the event loop
 * is held nor the memory that is taken grows with the transfers that a guest has under way.
 */

import type { Buffers, ImageFile } from './image-file.js';

const PIECE = 256 * 1024;

/** Guest memory that stays where it is until it is released. */
interface Held {
  readonly buffers: Buffers;
  release(): void | Promise<void>;
}

export class Comparing {
  readonly #image: ImageFile;
  #turn: Promise<unknown> = Promise.resolve();
  #piece: Uint8Array | undefined;

  constructor(image: ImageFile) {
    this.#image = image;
  }

  /**
   * Whether the image holds the same at `position`.
   * @param hold called when it is the command's turn @throws DevstateError DEVSTATE_E_SYSTEM, or what `hold` throws
   */
  equals(hold: () => Held | Promise<Held>, position: number): Promise<boolean> {
    const result = this.#turn.then(async () => {
      const held = await hold();
      try {
        return await this.#equals(held.buffers, position);
      } finally {
        await held.release();
      }
    });
    this.#turn = result.catch(() => {});
    return result;
  }

  async #equals(buffers: Buffers, position: number): Promise<boolean> {
    this.#piece ??= new Uint8Array(PIECE);
    let at = position;
    for (const pieces of inPieces(buffers)) {
      const length = pieces.reduce((sum, { length }) => sum + length, 0);
      const image = this.#piece.subarray(0, length);
      await this.#image.read([image], at);
      let done = 0;
      for (const piece of pieces) {
        if (Buffer.compare(piece, image.subarray(done, done + piece.length)) !== 0) return false;
        done += piece.length;
      }
      at += length;
    }
    return true;
  }
}

/** The same bytes in lists of at most `PIECE` bytes. */
function* inPieces(buffers: Buffers): Generator<Uint8Array[]> {
  let pieces: Uint8Array[] = [];
  let room = PIECE;
  for (let buffer of buffers) {
    while (buffer.length > 0) {
      const piece = buffer.subarray(0, room);
      pieces.push(piece);
      buffer = buffer.subarray(piece.length);
      room -= piece.length;
      if (room > 0) continue;
      yield pieces;
      pieces = [];
      room = PIECE;
    }
  }
  if (pieces.length > 0) yield pieces;
}
