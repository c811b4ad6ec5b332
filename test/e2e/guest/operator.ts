// SPDX-License-Identifier: Apache-2.0
/**
 * A process that operates `edu`, told what to do over the channel of child_process.fork: what a VMM is in real life. It is
 * a station of its own, at the path it is started with; `../vfio-transfer.ts` and its like are the managers.
 */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';
import {
  Channel,
  FIRST_VERSION,
  HANDOFF_VERSION,
  HandoffMessage,
  unpackDocument,
} from '../../../src/documents/index.js';
import { asDevstateError, type DevstateError } from '../../../src/errors.js';
import { encodeEntries, encodeTransferred, FdKind, LEASE_NAME } from '../../../src/handoff/index.js';
import { connect, Listener } from '../../../src/transport/index.js';
import {
  type AssignmentDocument,
  AssignmentGiver,
  askStatus,
  askToGive,
  ContainerSpace,
  memoryLock,
  type Operator,
  VfioAssignment,
  VfioStation,
} from '../../../src/vfio/index.js';
import { openFds } from '../../support/closes.js';
import { Edu } from './edu.js';

/** Where its memory is for the device, which reaches 28 bits of addresses. */
const IOVA = 0x100000;
const MEMORY = 0x40000;
const LENGTH = 4096;
/** Place of the register in PCI config space. */
const COMMAND = 0x04;

const [path = ''] = process.argv.slice(2);
let station: VfioStation | undefined;
/** What the process before had to say, and what became of its mappings. */
let inherited: { application: unknown; rebinding: unknown } | undefined;
let dieIn: string | undefined;

const operator: Operator = {
  suspend: () => {
    if (dieIn === 'suspend') process.kill(process.pid, 'SIGKILL');
    if (dieIn === 'throw') throw new Error('the operator cannot stop');
    return { from: process.pid };
  },
  adopted: (_assignment, application, rebinding) => {
    inherited = { application, rebinding };
    process.send?.({ log: 'adopted' });
  },
};

function assignment(): VfioAssignment {
  const found = station?.assignment;
  assert.ok(found, 'there are devices here');
  return found;
}

function edu(): Edu {
  return new Edu(assignment().device(assignment().deviceNames[0]!));
}

function open(lists: { groups?: string[]; cdevs?: string[] }): VfioAssignment {
  const { groups = [], cdevs = [] } = lists;
  return groups.length > 0 ? VfioAssignment.openGroups(groups) : VfioAssignment.openCdevs(cdevs);
}

/** A pattern that no other call has written. */
function pattern(seed: number): Uint8Array {
  return Uint8Array.from({ length: LENGTH }, (_, index) => (index * 7 + seed * 31 + (index >> 8)) & 0xff);
}

/** All that goes over, until the lease is offered. @param alter what the document says besides the truth */
async function passEntries(
  to: string,
  giver = new AssignmentGiver(assignment(), operator),
  alter: (document: AssignmentDocument) => void = () => {},
): Promise<Channel> {
  const channel = new Channel(await connect(to), { peers: 'any' });
  const offer = { handoff: HANDOFF_VERSION, ...giver.offer };
  await channel.sendDocument(HandoffMessage.PREPARE, offer, FIRST_VERSION);
  await channel.expect(HandoffMessage.READY);
  const { entries, document } = await giver.freeze(null, new AbortController().signal);
  alter(document as AssignmentDocument);
  const { lease } = assignment();
  const all = [...entries, { kind: FdKind.LEASE, name: LEASE_NAME, fd: lease.fd }];
  const fds = all.map(({ fd }) => fd);
  await channel.send(HandoffMessage.FDS, encodeEntries(all), fds);
  assert.ok(lease.offer());
  await channel.send(HandoffMessage.TRANSFERRED, encodeTransferred(all.length, document, lease.number));
  return channel;
}

interface Competition {
  done: number;
  refused: number;
  together: number;
}
let competing: Competition | undefined;

/** How often it tries before others in this process have their turn: a transfer, say. */
const TRIES = 20;

async function compete(counts: Competition): Promise<void> {
  while (competing === counts) {
    for (let round = 0; station?.assignment !== undefined && round < TRIES; round++) {
      try {
        operateAlone(counts);
        counts.done++;
      } catch (error) {
        if ((error as DevstateError).code !== 'DEVSTATE_E_VFIO_LEASE') throw error;
        counts.refused++;
      }
    }
    await delay(0);
  }
}

/** @throws DEVSTATE_E_VFIO_LEASE when it is not this process's turn */
function operateAlone(counts: Competition): void {
  const memory = assignment()
    .memory('ram')
    .bytes(MEMORY - LENGTH, LENGTH);
  const inside = new Int32Array(memory.buffer, memory.byteOffset, 1);
  assignment().requireLease();
  if (Atomics.add(inside, 0, 1) !== 0) counts.together++;
  edu().liveness = process.pid;
  if ((edu().liveness ^ 0xffffffff) >>> 0 !== process.pid) counts.together++;
  Atomics.sub(inside, 0, 1);
}

const commands: Record<string, (argument: never) => unknown> = {
  /** Begins to listen; with devices if it is told to open some. */
  listen: (lists: { groups?: string[]; cdevs?: string[]; lends?: boolean; users?: number[] }) => {
    const { groups, cdevs, lends = false, users = [] } = lists;
    const log = (_level: string, message: string): void => {
      process.send?.({ log: message });
    };
    const own = groups === undefined && cdevs === undefined ? {} : { assignment: open(lists) };
    station = new VfioStation(path, operator, { ...own, lends, users, log });
    return process.pid;
  },
  /** Memory, DMA mapping, bus mastering, interrupt. */
  setUp: () => {
    const memory = assignment().addMemory('ram', MEMORY);
    assignment().mapDma({ iova: IOVA, size: MEMORY, memory, offset: 0, read: true, write: true });
    edu().enable();
  },
  /** Registers that a reset would clear. */
  mark: (value: number) => {
    edu().liveness = value;
    edu().raise(0x20);
  },
  registers: () => ({
    id: edu().id,
    liveness: edu().liveness,
    pending: edu().pending,
    command: edu().command & 0x0006,
  }),
  acknowledge: (value: number) => edu().acknowledge(value),
  interrupts: async () => edu().interrupt(),
  /** Memory → device → other memory, by DMA, each way with its interrupt. */
  dma: async (seed: number) => {
    const memory = assignment().memory('ram');
    const [from, to] = [memory.bytes(0, LENGTH), memory.bytes(0x10000, LENGTH)];
    from.set(pattern(seed));
    to.fill(0);
    await edu().load(IOVA, LENGTH);
    await edu().store(IOVA + 0x10000, LENGTH);
    assert.deepEqual(Buffer.from(to), Buffer.from(pattern(seed)));
  },
  beginStore: async (seed: number) => {
    const memory = assignment().memory('ram');
    memory.bytes(0, LENGTH).set(pattern(seed));
    memory.bytes(0x20000, LENGTH).fill(0);
    await edu().load(IOVA, LENGTH);
    edu().beginStore(IOVA + 0x20000, LENGTH);
  },
  /** The end of a store that another process began. */
  finishStore: async (seed: number) => {
    await edu().dmaInterrupt();
    const found = assignment().memory('ram').bytes(0x20000, LENGTH);
    assert.deepEqual(Buffer.from(found), Buffer.from(pattern(seed)));
  },
  unmap: () => assignment().unmapDma(IOVA, MEMORY),
  map: () => {
    const memory = assignment().memory('ram');
    assignment().mapDma({ iova: IOVA, size: MEMORY, memory, offset: 0, read: true, write: true });
  },
  inherited: () => inherited,
  give: async (to: string) => (await station?.give(to, 20_000))?.unconfirmed,
  /** Gives up to the point where all is with the other end and the lease is offered, then dies or says nothing more. */
  giveAndDie: async (to: string) => {
    await passEntries(to);
    process.kill(process.pid, 'SIGKILL');
  },
  /** Gives the device as one that was another when it was given. @returns what the other end says */
  giveChanged: async (to: string) => {
    const giver = new AssignmentGiver(assignment(), operator);
    const channel = await passEntries(to, giver, ({ devices: [device] }) => {
      const config = Buffer.from(device?.config ?? []);
      config.writeUInt16LE(0, COMMAND);
      Object.assign(device ?? {}, { config });
    });
    const { payload } = await channel.next();
    channel.end();
    assert.ok(assignment().lease.takeBack());
    await giver.thaw();
    return unpackDocument(payload);
  },
  /** Instead of a station: takes everything, and dies before it takes the lease. */
  receiveAndDie: () => {
    Listener.listen(path, async (fd) => {
      const channel = new Channel(fd, { peers: 'any' });
      await channel.expect(HandoffMessage.PREPARE);
      await channel.sendDocument(HandoffMessage.READY, null);
      while ((await channel.next()).type !== HandoffMessage.TRANSFERRED);
      process.kill(process.pid, 'SIGKILL');
    });
  },
  dieIn: (where: string) => {
    dieIn = where;
  },
  /** Tries to operate the device, again and again, whosever it is. Shared memory tells whether two ever do at once. */
  compete: () => {
    competing = { done: 0, refused: 0, together: 0 };
    void compete(competing);
  },
  competition: () => competing,
  stopCompeting: () => {
    const result = competing;
    competing = undefined;
    return result;
  },
  resources: () => {
    const status = readFileSync('/proc/self/status', 'latin1');
    const kilobytes = (name: string): number =>
      Number(new RegExp(`^${name}:\\s+(\\d+)`, 'm').exec(status)?.[1]);
    const space = station?.assignment?.space;
    return {
      fds: openFds(),
      locked: kilobytes('VmLck'),
      pinned: kilobytes('VmPin'),
      limit: memoryLock().limit,
      mappingsLeft: space instanceof ContainerSpace ? space.container.info().dmaAvailable : undefined,
    };
  },
  // What a manager asks, by the user that this process runs as.
  askStatus: (of: string) => askStatus(of),
  askToGive: ({ from, to }: { from: string; to: string }) => askToGive(from, to, 30_000),
  /** Releases what it has, which ends with it, and opens what it is given. */
  reopen: async (lists: { groups?: string[]; cdevs?: string[] }) => {
    await station?.close();
    await commands.listen?.(lists as never);
  },
};

process.on('message', async ({ id, command, argument }: { id: number; command: string; argument: never }) => {
  try {
    const value = await commands[command]?.(argument);
    process.send?.({ id, value });
  } catch (error) {
    const { code, message } = asDevstateError(error);
    process.send?.({ id, error: { code, message } });
  }
});
