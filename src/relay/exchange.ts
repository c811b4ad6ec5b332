// SPDX-License-Identifier: Apache-2.0
/**
 * One VMM's memory and interrupts at a server, exchanged for another's. Memory that both have mapped alike, as QEMU does
 * that replaces itself, stays as it is: a device that uses it notices nothing.
 *
 * libvfio-user takes none of this from a device that is stopped, which it must be; then it is done as soon as that runs.
 */

import { DevstateError } from '../errors.js';
import { native } from '../native/index.js';
import { closeAll } from '../transport/index.js';
import { eachInTurns } from '../turns.js';
import {
  Command,
  DMA_MAP_LENGTH,
  DMA_UNMAP_LENGTH,
  Errno,
  encodeDmaMap,
  encodeDmaUnmap,
  encodeSetIrqs,
  errnoName,
  HeaderFlag,
  IrqSetFlag,
  messageError,
  messageFlags,
  SET_IRQS_LENGTH,
} from '../wire/index.js';
import type { BackEnd } from './back-end.js';
import type { DmaMaps, DmaRangeOfVmm } from './dma-maps.js';
import type { Origin } from './in-flight.js';
import { encodeRequest, NO_FDS, type OwnMessage } from './messages.js';
import type { ReplayLog } from './replay-log.js';

/** Messages that a server is sent before its answers are waited for: about 2 ms of work. */
const TOLD_AT_ONCE = 256;

/** Memory that a server has to forget, and to know of. There may be tens of thousands of ranges: others have their turns. */
async function changedRanges(now: DmaMaps, next: DmaMaps) {
  const stays = new Set<DmaRangeOfVmm>();
  const removed: DmaRangeOfVmm[] = [];
  const added: DmaRangeOfVmm[] = [];
  await eachInTurns([...now.ranges], (range) => {
    const other = next.at(range.address);
    if (other !== undefined && isSame(range, now, other, next)) stays.add(other);
    else removed.push(range);
  });
  await eachInTurns([...next.ranges], (range) => {
    if (!stays.has(range)) added.push(range);
  });
  return { removed, added };
}

/** The same place in the same file, or no file at all. */
function isSame(a: DmaRangeOfVmm, ofA: DmaMaps, b: DmaRangeOfVmm, ofB: DmaMaps): boolean {
  if (a.address !== b.address || a.size !== b.size || a.flags !== b.flags) return false;
  if (a.fd === undefined || b.fd === undefined) return a.fd === b.fd;
  return a.offset === b.offset && ofA.fileOf(a.fd) === ofB.fileOf(b.fd);
}

/** The commands that turn a server with `now` into one with `next`: each made when it is asked for. The messages own their fds. */
async function* differences(now: ReplayLog, next: ReplayLog, maxFds: number): AsyncGenerator<OwnMessage> {
  const { removed, added } = await changedRanges(now.dma, next.dma);
  for (const { address, size } of removed) {
    const body = new Uint8Array(DMA_UNMAP_LENGTH);
    encodeDmaUnmap(viewOf(body), 0, { flags: 0, address, size });
    yield encodeRequest(Command.DMA_UNMAP, [body]);
  }
  for (const { fd, ...request } of added) {
    const body = new Uint8Array(DMA_MAP_LENGTH);
    encodeDmaMap(viewOf(body), 0, request);
    yield encodeRequest(Command.DMA_MAP, [body], fd === undefined ? NO_FDS : [fd]);
  }
  for (const index of now.interrupts.indexes) {
    const flags = IrqSetFlag.DATA_NONE | IrqSetFlag.ACTION_TRIGGER;
    const body = new Uint8Array(SET_IRQS_LENGTH);
    encodeSetIrqs(viewOf(body), 0, { flags, index, start: 0, count: 0 });
    yield encodeRequest(Command.DEVICE_SET_IRQS, [body]);
  }
  for (const { request, fds } of next.interrupts.messages(maxFds)) {
    const body = new Uint8Array(SET_IRQS_LENGTH);
    encodeSetIrqs(viewOf(body), 0, request);
    yield encodeRequest(Command.DEVICE_SET_IRQS, [body], fds);
  }
}

/**
 * Tells a server whose device is stopped.
 * @returns what it refuses for that reason, to be told when the device runs
 * @throws DEVSTATE_E_REFUSED when it refuses anything for another reason, and DEVSTATE_E_CONNECTION_CLOSED
 */
export async function tellStopped(back: BackEnd, now: ReplayLog, next: ReplayLog): Promise<OwnMessage[]> {
  const later: OwnMessage[] = [];
  const errnos: number[] = [];
  const tell = (one: OwnMessage): void => {
    const origin: Origin = {
      reply: (_request, { view }) => {
        if ((messageFlags(view) & HeaderFlag.ERROR) === 0) closeAll(one.fds);
        else if (messageError(view) === Errno.EINVAL) later.push(one);
        else {
          errnos.push(messageError(view));
          closeAll(one.fds);
        }
      },
      lost: () => closeAll(one.fds),
    };
    const copies = one.fds.map((fd) => fd.duplicate());
    back.forward(origin, one, copies, false);
  };
  try {
    let told = 0;
    for await (const one of differences(now, next, back.version.capabilities.maxMsgFds)) {
      tell(one);
      if (++told % TOLD_AT_ONCE === 0) await back.fence();
    }
    await back.fence();
  } catch (error) {
    for (const { fds } of later) closeAll(fds);
    throw error;
  }
  if (errnos[0] === undefined) return later;
  for (const { fds } of later) closeAll(fds);
  const why = errnoName(errnos[0]);
  const what = `the device server at ${back.path} does not take the other VMM's memory or interrupts: ${why}`;
  throw new DevstateError('DEVSTATE_E_REFUSED', what, { errno: errnos[0] });
}

/**
 * Signals every eventfd of a VMM: an interrupt may have been raised for the other VMM, which took it no more, as it had
 * saved its own state already, or the server had not been told of this one. One too many does no harm.
 */
export function signalAll({ interrupts }: ReplayLog): void {
  for (const fd of interrupts.triggers()) native.eventfdSignal(fd.number);
}

function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
}
