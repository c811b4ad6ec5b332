// SPDX-License-Identifier: Apache-2.0
/** How a range that the VMM maps for DMA is reached: by mmap, by pread and pwrite on its fd, or by messages. */

import { read, write } from 'node:fs';
import { promisify } from 'node:util';
import { FileType, native } from '../native/index.js';
import type { DmaPeer } from '../server/index.js';
import type { Fd } from '../transport/index.js';
import { DmaMapFlag, type DmaMapRequest, Errno, RequestError } from '../wire/index.js';
import {
  type Backing,
  type BackingOrigin,
  type MappedBacking,
  type RemoteBacking,
  WINDOW_SIZE,
} from './dma-table.js';
import { type Piece, type SharedFile, SharedFiles } from './shared-files.js';

const readFile = promisify(read);
const writeFile = promisify(write);

/**
 * The backing of a DMA_MAP. Does not take the fd, but may duplicate it.
 * @throws RequestError when the fd cannot be what the request says
 */
export function openBacking(
  request: DmaMapRequest,
  fd: Fd | undefined,
  peer: DmaPeer,
  files = new SharedFiles(),
): Backing {
  if (fd === undefined) return messageBacking(request, peer);
  if ((request.flags & DmaMapFlag.FILE_IO) !== 0) return fileBacking(request, fd, files);
  return mappedBacking(request, fd, files);
}

function originOf({ offset, flags }: DmaMapRequest, file: Fd | undefined): BackingOrigin {
  return { file, offset, flags };
}

function mappedBacking(request: DmaMapRequest, fd: Fd, files: SharedFiles): MappedBacking {
  requireFile(request, fd);
  const file = files.hold(fd, (request.flags & DmaMapFlag.WRITE) !== 0);
  try {
    return new MappedRange(file.map(request.offset, request.size), request, file);
  } catch (error) {
    file.release();
    throw error;
  }
}

/** A file shorter than the range would fault on access; a client that shrinks it later is dealt with by the addon. */
function requireFile(request: DmaMapRequest, fd: Fd): void {
  const stat = new Float64Array(4);
  const result = native.stat(fd.number, stat);
  if (result < 0) throw new RequestError(-result, 'the fd of a DMA range cannot be examined');
  const isRegular = (stat[1]! & FileType.mask) === FileType.regular;
  if (isRegular && request.offset + request.size > stat[0]!) {
    throw new RequestError(
      Errno.EINVAL,
      `the file behind a DMA range is shorter than the range (${stat[0]} bytes)`,
    );
  }
}

class MappedRange implements MappedBacking {
  readonly kind = 'mapped';
  readonly origin: BackingOrigin;
  readonly #mapping: Piece;
  readonly #file: SharedFile;
  /** Made when first touched: a range may be terabytes. */
  readonly #windows: Uint8Array[] = [];

  constructor(mapping: Piece, request: DmaMapRequest, file: SharedFile) {
    this.#mapping = mapping;
    this.#file = file;
    this.origin = originOf(request, file.fd);
  }

  window(index: number): Uint8Array {
    const window = this.#windows[index];
    if (window !== undefined) return window;
    const offset = index * WINDOW_SIZE;
    const buffer = this.#mapping.window(offset, Math.min(WINDOW_SIZE, this.#mapping.length - offset));
    if (typeof buffer === 'number')
      throw new RequestError(-buffer, 'a part of a DMA range cannot be reached');
    const made = new Uint8Array(buffer);
    this.#windows[index] = made;
    return made;
  }

  unmap(): void {
    this.#windows.length = 0;
    this.#mapping.unmap();
    this.#file.release();
  }
}

function fileBacking(request: DmaMapRequest, fd: Fd, files: SharedFiles): RemoteBacking {
  const shared = files.hold(fd, (request.flags & DmaMapFlag.WRITE) !== 0);
  const file = shared.fd;
  return {
    kind: 'remote',
    origin: originOf(request, file),
    byVmm: false,
    read: async (offset, target) => {
      const { bytesRead } = await readFile(file.number, target, 0, target.length, request.offset + offset);
      if (bytesRead !== target.length)
        throw new RequestError(Errno.EFAULT, 'the file behind a DMA range ended');
    },
    write: async (offset, source) => {
      const { bytesWritten } = await writeFile(
        file.number,
        source,
        0,
        source.length,
        request.offset + offset,
      );
      if (bytesWritten !== source.length)
        throw new RequestError(Errno.EFAULT, 'the file behind a DMA range is full');
    },
    unmap: () => shared.release(),
  };
}

function messageBacking(request: DmaMapRequest, peer: DmaPeer): RemoteBacking {
  return {
    kind: 'remote',
    origin: originOf(request, undefined),
    byVmm: true,
    read: (offset, target) => peer.read(request.address + offset, target),
    write: (offset, source) => peer.write(request.address + offset, source),
    unmap: () => {},
  };
}
