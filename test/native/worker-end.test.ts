// SPDX-License-Identifier: Apache-2.0
/**
 * Workers that are terminated in the middle of maps, windows, pins, polls and work on the pool: the process lives on, and
 * neither a range nor a descriptor of theirs is left. In a process of its own, because a fault would end it.
 */

import { spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { openSync, read, readdirSync, readFileSync, readlinkSync } from 'node:fs';
import { setImmediate as nextTurn } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { isMainThread, parentPort, Worker, workerData } from 'node:worker_threads';
import t from 'tap';
import {
  check,
  checkObject,
  type Mapping,
  native,
  PollEvent,
  type Poller,
  Protection,
} from '../../src/native/index.js';

const SELF = fileURLToPath(import.meta.url);
const NAME = 'worker-end';
const LENGTH = 8 << 20;

/** What a worker is in the middle of when it is terminated. */
const TASKS = ['map', 'poll', 'work', 'read', 'all'] as const;
type Task = (typeof TASKS)[number];
/** Ends of workers for each task. */
const ROUNDS = 4;

/** Descriptors that the main thread owns and every worker uses. */
interface Given {
  readonly task: Task;
  readonly memory: number;
  readonly events: readonly number[];
  readonly zero: number;
}

function mapAll({ memory }: Given): Mapping {
  return checkObject(native.map(memory, 0, LENGTH, Protection.readWrite), 'map');
}

function windowOf(mapping: Mapping): Uint8Array {
  return new Uint8Array(checkObject(mapping.window(0, mapping.length), 'window'));
}

/** What still lives when the worker ends. */
const kept: unknown[] = [];

function doMap(given: Given): void {
  const mapping = mapAll(given);
  kept.push(mapping, windowOf(mapping), mapping.part(0, 4096));
  const pinned = mapAll(given);
  pinned.pin();
  pinned.unmap();
  if (kept.length > 300) for (const one of kept.splice(0, 150)) (one as Mapping).unmap?.();
}

/** One descriptor takes one poller at a time, until the turn of the loop in which it is closed. */
const pollers = new Map<number, Poller>();

function doPoll({ events }: Given): void {
  for (const event of events) {
    pollers.get(event)?.close();
    pollers.delete(event);
    const made = native.createPoller(event, () => kept.push(0));
    if (typeof made === 'number') continue;
    made.start(PollEvent.readable);
    pollers.set(event, made);
  }
}

/** Operations on the pool that have not ended. */
let underWay = 0;
const ended = (): void => {
  underWay--;
};

function doWork(given: Given): void {
  const [one, other] = [mapAll(given), mapAll(given)];
  const [bytes, same] = [windowOf(one), windowOf(other)];
  const operations = [
    native.copyLater(same, bytes),
    native.equalLater(bytes, same),
    native.allocateLater(given.memory, 0, 0, LENGTH),
  ];
  underWay += operations.length;
  for (const operation of operations) void operation.then(ended);
  one.unmap();
}

function doRead(given: Given): void {
  const mapping = mapAll(given);
  const window = windowOf(mapping);
  mapping.pin();
  underWay++;
  read(given.zero, window, 0, window.length, null, () => {
    mapping.unpin();
    ended();
  });
  mapping.unmap();
}

const ACTIONS = { map: doMap, poll: doPoll, work: doWork, read: doRead };

async function runWorker(given: Given): Promise<void> {
  const tasks = given.task === 'all' ? Object.values(ACTIONS) : [ACTIONS[given.task]];
  for (let turn = 0; ; turn++) {
    for (const action of tasks) action(given);
    if (turn === 4) parentPort!.postMessage('busy');
    if (turn % 4 === 3) await nextTurn();
    while (underWay > 24) await nextTurn();
    if (kept.length > 5000) kept.length = 0;
  }
}

function openFiles(): string {
  const links = readdirSync('/proc/self/fd').map((number) => {
    try {
      return `${number} ${readlinkSync(`/proc/self/fd/${number}`)}`;
    } catch {
      return ''; // The folder that is being read.
    }
  });
  return links.filter((link) => link !== '').join('\n');
}

function mappedRanges(): number {
  const lines = readFileSync('/proc/self/maps', 'utf8').split('\n');
  return lines.filter((line) => line.includes(`/memfd:${NAME} `)).length;
}

async function endWorker(given: Given): Promise<void> {
  const worker = new Worker(SELF, { workerData: given });
  await once(worker, 'message');
  await worker.terminate();
  while (native.unmapping() > 0) await nextTurn();
}

async function runMain(): Promise<void> {
  const memory = check(native.memfdCreate(NAME), 'create');
  check(native.truncate(memory, LENGTH), 'size');
  const events = Array.from({ length: 8 }, () => check(native.eventfdCreate(1), 'event'));
  const zero = openSync('/dev/zero', 'r');
  // The first worker has the process open what it keeps.
  await endWorker({ task: 'all', memory, events, zero });
  const before = openFiles();
  for (const task of TASKS) {
    for (let round = 0; round < ROUNDS; round++) await endWorker({ task, memory, events, zero });
    const left = mappedRanges();
    if (left > 0) throw new Error(`${task}: ${left} ranges are left`);
    if (openFiles() !== before) throw new Error(`${task}: open are ${openFiles()}, and before\n${before}`);
  }
  process.stdout.write('done');
}

// Also in the process with the workers, which loads tap too. Under a sanitizer it takes a minute.
t.setTimeout(300_000);

// Not while the module is evaluated: Node.js 20 itself ends with a fault when a worker is terminated in that.
if (!isMainThread) setImmediate(() => void runWorker(workerData as Given));
else if (process.argv[2] === 'child') void runMain();
else {
  t.test('workers that end in the middle of everything leave nothing', async (t) => {
    const { status, signal, stdout, stderr } = spawnSync(process.execPath, [SELF, 'child'], {
      encoding: 'utf8',
      timeout: 280_000,
    });
    t.equal(signal, null, stderr);
    t.equal(status, 0, stderr);
    t.equal(stdout, 'done');
  });
}
