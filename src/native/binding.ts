// SPDX-License-Identifier: Apache-2.0
/**
 * What the addon offers, call by call. Unless said otherwise a call returns its value or the negative Linux errno,
 * throws a TypeError for an argument of the wrong type, and never blocks.
 *
 * Offsets, lengths and positions are safe integers in bytes. `Fd` numbers are plain integers here;
 * their owners are the `Fd` objects of `src/transport`.
 */

/** One buffer or several that are treated as if they were joined. */
export type Parts = Uint8Array | readonly Uint8Array[];

/** Watches one file descriptor on the event loop; made stopped. Stays alive until {@link close}. */
export interface Poller {
  /** Watches for these {@link PollEvent}s from now on, instead of those before. */
  start(events: number): number;
  stop(): number;
  /** Stops for good; the descriptor may be closed as soon as this returns. */
  close(): number;
  /** Keeps the process alive while started (as after creation). */
  ref(): void;
  unref(): void;
}

/** A shared mapping of a file, or a part of one. It is unmapped when neither it nor a window of it is referenced any more. */
export interface Mapping {
  /** Bytes mapped. */
  readonly length: number;
  /** Whether the memory is there: false after {@link unmap}, once nothing is pinned. */
  readonly mapped: boolean;
  /**
   * Whether a part was found missing when it was touched, because somebody truncated the file. That part and what
   * follows it then read as zeros and writes to it are lost: end the relation with the peer that shared it.
   */
  readonly faulted: boolean;
  /**
   * An ArrayBuffer over a part, at most {@link MAX_WINDOW_LENGTH} long; several may overlap.
   * {@link unmap} detaches it (its length becomes 0). It must not be transferred to another thread or buffer.
   */
  window(offset: number, length: number): ArrayBuffer | number;
  /**
   * A part as a Mapping of its own: it has its own windows, pins and end. The memory stays mapped until the last of all
   * parts is unmapped.
   */
  part(offset: number, length: number): Mapping | number;
  /**
   * Detaches all windows and unmaps: now, or with the last {@link unpin}. The range itself is given back by a thread of the
   * addon, in slices. May be called again.
   */
  unmap(): number;
  /** Keeps the memory mapped while asynchronous I/O holds a window, even across {@link unmap}. */
  pin(): number;
  unpin(): number;
}

export interface NativeBinding {
  /** A listening UNIX stream socket at `path`, created with mode `mode` (less umask). */
  unixListen(path: string, mode: number, backlog: number): number;
  /** A connected UNIX stream socket; -EAGAIN when the listener's backlog is full. */
  unixConnect(path: string): number;
  accept(fd: number): number;
  /** Two connected UNIX stream sockets, to `out[0]` and `out[1]`. */
  socketPair(out: Int32Array): number;
  /** `how`: {@link Shutdown}. */
  shutdown(fd: number, how: number): number;
  /** Pid, uid and gid of the peer when it connected or listened, to `out[0..2]`. */
  peerCredentials(fd: number, out: Int32Array): number;
  /** Domain (AF_*), type (SOCK_*) and whether it listens (0 or 1), to `out[0..2]`. */
  socketInfo(fd: number, out: Int32Array): number;
  setSendBuffer(fd: number, bytes: number): number;
  setReceiveBuffer(fd: number, bytes: number): number;
  /**
   * Sends bytes `start` to `end` (exclusive, clamped) of at most 64 parts; the first `fdCount` of `fds`, at most
   * {@link MAX_MESSAGE_FDS}, travel with the first byte. Returns the bytes sent, maybe fewer than given.
   */
  sendMessage(
    fd: number,
    parts: Parts,
    start: number,
    end: number,
    fds: Int32Array | null,
    fdCount: number,
  ): number;
  /**
   * Receives up to `length` bytes at `buffer[offset]`; 0 at the end of the stream. `received` then holds
   * `[count of fds, 1 if some were lost, fds...]`, the fds close-on-exec.
   */
  receiveMessage(
    fd: number,
    buffer: Uint8Array,
    offset: number,
    length: number,
    received: Int32Array,
  ): number;
  /** As {@link receiveMessage}, and all of it stays in the socket: the fds are duplicates. */
  peekMessage(fd: number, buffer: Uint8Array, offset: number, length: number, received: Int32Array): number;
  /** A datagram socket bound to `path`, with mode `mode` (less umask); messages come by {@link receiveMessage}. */
  datagramListen(path: string, mode: number): number;
  /** A datagram socket connected to `path`; one that begins with `@` is abstract. */
  datagramConnect(path: string): number;
  /**
   * Receives up to `length` bytes at `memory[bufferAt]`, 0 at the end of the stream, and has the kernel count them in the
   * call itself: at `memory[headerAt + 56]`, u32, in the `mmsghdr` (64 bytes, aligned to 8) that this makes at `headerAt`.
   * In shared memory that does not go away, the count holds even if the process is killed in the call. `received` as for
   * {@link receiveMessage}; with null the fds that came are closed.
   */
  receiveCounted(
    fd: number,
    memory: Uint8Array,
    headerAt: number,
    bufferAt: number,
    length: number,
    received: Int32Array | null,
  ): number;
  /** Sends up to `length` bytes from `memory[bufferAt]`, counted like those of {@link receiveCounted}. */
  sendCounted(fd: number, memory: Uint8Array, headerAt: number, bufferAt: number, length: number): number;
  /** 1 when both are the same open file, 0 when not; -ENOSYS or -EPERM where the kernel does not say. */
  sameFile(fd: number, other: number): number;

  createPoller(fd: number, callback: (events: number) => void): Poller | number;

  close(fd: number): number;
  /**
   * Closes on a thread of the addon, because the close of a file that somebody passed may block for as long as they like
   * (a socket that lingers, FUSE, the last reference to gigabytes). The number stays in use until then. The process
   * exits without waiting. `group`, 0 to 2^32-1, says whose it is: closes of one group do not delay those of another.
   */
  closeLater(fd: number, group: number): number;
  /** Closes of a group, or of all, that have not returned. */
  closing(group?: number): number;
  /** Another number for the same open file, close-on-exec. */
  duplicate(fd: number): number;
  /** A file that stands for a process and is readable once that has ended. */
  pidfdOpen(pid: number): number;
  /** Size, mode, device and inode to `out[0..3]`. */
  stat(fd: number, out: Float64Array): number;
  /** Waits for poll(2) events, at most `timeoutMs` (BLOCKS the thread); the events that hold, 0 after the time. */
  poll(fd: number, events: number, timeoutMs: number): number;

  /** A new sealable memory file. */
  memfdCreate(name: string): number;
  truncate(fd: number, length: number): number;
  /** `seals`: {@link Seal}. */
  addSeals(fd: number, seals: number): number;
  getSeals(fd: number): number;
  /**
   * Maps a part of a file, shared; `protection`: {@link Protection}, with {@link RESIDENT} to have it in memory at once and
   * for good, as far as this process may lock it. The fd may be closed afterwards.
   */
  map(fd: number, offset: number, length: number, protection: number): Mapping | number;

  /** Most {@link map}s at once, by vm.max_map_count: beyond, it is -ENOMEM. The rest is for the process itself. */
  maxRanges(): number;
  /** Ranges that were given up and are still mapped. */
  unmapping(): number;

  /** A new non-blocking event counter. */
  eventfdCreate(initial: number): number;
  /** Adds 1; -EAGAIN when the counter is full. */
  eventfdSignal(fd: number): number;
  /** Reads and clears the counter; -EAGAIN when it is 0. */
  eventfdRead(fd: number): number;

  /** Takes or drops a lock of the open file; -EAGAIN when another holds it. `type`: {@link LockType}. */
  setLock(fd: number, type: number, start: number, length: number): number;
  /** `LockType.unlocked` when {@link setLock} would succeed, else the type that is in the way. */
  testLock(fd: number, type: number, start: number, length: number): number;
  /**
   * Gives a file that was opened with O_TMPFILE the name `path`; -EEXIST when something is there, -ENOENT without /proc.
   */
  linkFile(fd: number, path: string): number;
  /** Takes the lock of flock(2) until the open file is closed; -EWOULDBLOCK when another open file has it. */
  tryFlock(fd: number): number;
  /** fallocate(2); may wait for the disk. `mode`: {@link AllocateMode}. */
  allocate(fd: number, mode: number, offset: number, length: number): number;
  /** The same on a thread of the pool. Keep the fd open until the promise settles; it gives 0 or the negative errno. */
  allocateLater(fd: number, mode: number, offset: number, length: number): Promise<number>;
  /**
   * Copies on a thread of the pool, as many bytes as the shorter one has; gives their number. Both stay in memory until it
   * settles, also across {@link Mapping.unmap}; neither may be transferred.
   */
  copyLater(target: Uint8Array, source: Uint8Array): Promise<number>;
  /** Compares on a thread of the pool, as {@link copyLater}; gives 1 when lengths and bytes are equal, else 0. */
  equalLater(one: Uint8Array, other: Uint8Array): Promise<number>;
  /** Reads at most 1024 parts from the page cache; -EAGAIN when the disk would be needed. */
  readNow(fd: number, parts: Parts, position: number): number;
  /** Writes without waiting; -EAGAIN or -EOPNOTSUPP when that cannot be. */
  writeNow(fd: number, parts: Parts, position: number): number;

  /**
   * A writer of lines to `fd`, for the life of the process: a thread of its own writes, so that no call waits for a reader.
   * The open file's flags stay as they are. `limit`: most bytes that wait. At most 8 in a process (-EMFILE).
   */
  outputOpen(fd: number, limit: number): number;
  /**
   * Queues a line. One that does not fit, and one that cannot be written, counts as `weight` dropped lines. Returns the
   * lines that were dropped since the last {@link outputState}.
   */
  outputWrite(writer: number, line: Uint8Array, weight: number): number;
  /** Bytes that wait, and lines that were dropped since the last call, to `out[0..1]`. */
  outputState(writer: number, out: Float64Array): number;
  /** Waits until all is written: 1; 0 when nothing was for `stalledMs`, or not all in ten times that (BLOCKS the thread). */
  outputFlush(writer: number, stalledMs: number): number;

  /**
   * ioctl(2) with an integer, on a file of VFIO or iommufd; -EINVAL for a request that is not theirs. The values and
   * structures of all requests are in `src/vfio/uapi`. Requests that map memory BLOCK while the kernel pins its pages.
   */
  vfioCall(fd: number, request: number, value: number): number;
  /** ioctl(2) with a structure, whose first u32 is its length and at most that of `bytes`. */
  vfioCallStruct(fd: number, request: number, bytes: Uint8Array): number;
  /**
   * The same with memory that the structure points to: its address from `offset` on is put at `bytes[pointerAt]` (u64)
   * and `length` at `bytes[lengthAt]` (u64) unless that is -1. `memory` must have that many bytes.
   */
  vfioCallMemory(
    fd: number,
    request: number,
    bytes: Uint8Array,
    pointerAt: number,
    lengthAt: number,
    memory: Mapping | Uint8Array,
    offset: number,
    length: number,
  ): number;
  vfioSetContainer(group: number, container: number): number;
  /** The device of that name as a new fd, close-on-exec. */
  vfioGetDevice(group: number, name: string): number;

  /** CRC-32C of a part of `bytes`; `seed` is the CRC of what came before, 0 at the start. RangeError outside. */
  crc32c(bytes: Uint8Array, offset: number, length: number, seed: number): number;
  /** The same without the processor's instruction, for comparison. */
  crc32cPortable(bytes: Uint8Array, offset: number, length: number, seed: number): number;
}

/** Most fds one message carries: SCM_MAX_FD of Linux. */
export const MAX_MESSAGE_FDS = 253;
/** Longest window of a {@link Mapping}. */
export const MAX_WINDOW_LENGTH = 2 ** 30;

/** Events of a {@link Poller} (uv_poll). */
export const PollEvent = { readable: 1, writable: 2, disconnect: 4 } as const;
/** Events of {@link NativeBinding.poll} (poll(2)). */
export const PosixPoll = { in: 0x01, out: 0x04, error: 0x08, hangUp: 0x10, invalid: 0x20 } as const;
export const Shutdown = { receive: 0, send: 1, both: 2 } as const;
export const Protection = { read: 1, write: 2, readWrite: 3 } as const;
export const RESIDENT = 4;
/** F_SEAL_*. */
export const Seal = { seal: 0x01, shrink: 0x02, grow: 0x04, write: 0x08, futureWrite: 0x10 } as const;
/** F_RDLCK, F_WRLCK, F_UNLCK. */
export const LockType = { read: 0, write: 1, unlocked: 2 } as const;
/** FALLOC_FL_*, each with KEEP_SIZE. */
export const AllocateMode = { reserve: 0x01, punchHole: 0x03, zeroRange: 0x11 } as const;
/** S_IFMT and the file types under it, for the mode that {@link NativeBinding.stat} gives. */
export const FileType = { mask: 0o170000, regular: 0o100000, socket: 0o140000 } as const;
