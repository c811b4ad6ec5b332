// SPDX-License-Identifier: Apache-2.0
/** Data between a command's data pointer and the controller: at once where guest memory is mapped, else later. */

import type { GuestMemory } from '../../../device/index.js';
import { Dword, Status } from '../spec/index.js';
import type { Birch } from './birch.js';
import { DataPointer } from './data-pointer.js';

/** A status, or a promise of one where something has to be waited for. */
export type Outcome = number | Promise<number>;

/** Resolves a command's data pointer. @throws DmaFault */
export function locate(birch: Birch, slot: number, length: number, pointer: DataPointer): Outcome {
  const { image } = birch;
  pointer.start(image.qword(slot, Dword.PRP1), image.qword(slot, Dword.PRP2), length, image.pageSize);
  const { memory } = birch.host;
  while (pointer.listLength > 0) {
    const list = memory.view(pointer.listAddress, pointer.listLength, 'read');
    if (list === undefined) return locateRemote(memory, pointer);
    pointer.feed(list);
  }
  return pointer.status;
}

async function locateRemote(memory: GuestMemory, pointer: DataPointer): Promise<number> {
  while (pointer.listLength > 0) {
    const list = new Uint8Array(pointer.listLength);
    await memory.read(pointer.listAddress, list);
    pointer.feed(list);
  }
  return pointer.status;
}

/** Copies `data` to where a command wants them. @throws DmaFault */
export function copyToGuest(birch: Birch, slot: number, data: Uint8Array): Outcome {
  return copy(birch, slot, data, (memory, address, part) => memory.write(address, part));
}

/** Fills `data` from where a command has them. @throws DmaFault */
export function copyFromGuest(birch: Birch, slot: number, data: Uint8Array): Outcome {
  return copy(birch, slot, data, (memory, address, part) => memory.read(address, part));
}

type Move = (memory: GuestMemory, address: number, part: Uint8Array) => void | Promise<void>;

function copy(birch: Birch, slot: number, data: Uint8Array, move: Move): Outcome {
  const pointer = new DataPointer();
  const status = locate(birch, slot, data.length, pointer);
  if (typeof status !== 'number')
    return status.then((late) => copySegments(birch, pointer, late, data, move));
  return copySegments(birch, pointer, status, data, move);
}

function copySegments(
  birch: Birch,
  pointer: DataPointer,
  status: number,
  data: Uint8Array,
  move: Move,
  first = 0,
  done = 0,
): Outcome {
  if (status !== Status.SUCCESS) return status;
  const { memory } = birch.host;
  for (let index = first; index < pointer.count; index++) {
    const length = pointer.length(index);
    const moved = move(memory, pointer.address(index), data.subarray(done, done + length));
    done += length;
    if (moved !== undefined) {
      return moved.then(() => copySegments(birch, pointer, status, data, move, index + 1, done));
    }
  }
  return status;
}
