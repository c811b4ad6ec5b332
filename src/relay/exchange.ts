// SPDX-License-Identifier: Apache-2.0
/**
 * One VMM's memory and interrupts at a server, exchanged for another's. Memory that both have mapped alike, as QEMU does
 * that replaces itself, stays as it is: a device that uses it notices nothing.
 *
 * libvfio-user takes none of this from a device that is stopped, which it must be; then it is done as soon as that runs.
 */

import { fstatSync } from 'node:fs';
import { DevstateError } from '../errors.js';
import { native } from '../native/index.js';
import { closeAll } from '../transport/index.js';
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
import type { DmaRangeOfVmm } from './dma-maps.js';
import type { Origin } from './in-flight.js';
import { encodeRequest, NO_FDS, type OwnMessage } from './messages.js';
import type { ReplayLog } from './replay-log.js';

/** What a server has to be told that has `now`, and is to have `next`. The messages own their fds. */
function differences(now: ReplayLog, next: ReplayLog, maxFds: number): OwnMessage[] {
  const stays = new Set<DmaRangeOfVmm>();
  const removed = [...now.dma.ranges].filter((range) => {
    const other = next.dma.at(range.address);
    const same = other !== undefined && isSame(range, other);
    if (same) stays.add(other);
    return !same;
  });
  const added = [...next.dma.ranges].filter((range) => !stays.has(range));
  return [
    ...removed.map(({ address, size }) => {
      const body = new Uint8Array(DMA_UNMAP_LENGTH);
      encodeDmaUnmap(viewOf(body), 0, { flags: 0, address, size });
      return encodeRequest(Command.DMA_UNMAP, body);
    }),
    ...added.map(({ fd, ...request }) => {
      const body = new Uint8Array(DMA_MAP_LENGTH);
      encodeDmaMap(viewOf(body), 0, request);
      return encodeRequest(Command.DMA_MAP, body, fd === undefined ? NO_FDS : [fd]);
    }),
    ...now.interrupts.indexes.map((index) => {
      const flags = IrqSetFlag.DATA_NONE | IrqSetFlag.ACTION_TRIGGER;
      const body = new Uint8Array(SET_IRQS_LENGTH);
      encodeSetIrqs(viewOf(body), 0, { flags, index, start: 0, count: 0 });
      return encodeRequest(Command.DEVICE_SET_IRQS, body);
    }),
    ...[...next.interrupts.messages(maxFds)].map(({ request, fds }) => {
      const body = new Uint8Array(SET_IRQS_LENGTH);
      encodeSetIrqs(viewOf(body), 0, request);
      return encodeRequest(Command.DEVICE_SET_IRQS, body, fds);
    }),
  ];
}

/** The same place in the same file, or no file at all. */
function isSame(a: DmaRangeOfVmm, b: DmaRangeOfVmm): boolean {
  if (a.address !== b.address || a.size !== b.size || a.flags !== b.flags) return false;
  if (a.fd === undefined || b.fd === undefined) return a.fd === b.fd;
  const [one, other] = [fstatSync(a.fd.number), fstatSync(b.fd.number)];
  return a.offset === b.offset && one.dev === other.dev && one.ino === other.ino;
}

/**
 * Tells a server whose device is stopped.
 * @returns what it refuses for that reason, to be told when the device runs
 * @throws DEVSTATE_E_REFUSED when it refuses anything for another reason, and DEVSTATE_E_CONNECTION_CLOSED
 */
export async function tellStopped(back: BackEnd, now: ReplayLog, next: ReplayLog): Promise<OwnMessage[]> {
  const all = differences(now, next, back.version.capabilities.maxMsgFds);
  const later: OwnMessage[] = [];
  const errnos: number[] = [];
  for (const one of all) {
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
  }
  await back.fence();
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
