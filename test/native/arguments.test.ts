// SPDX-License-Identifier: Apache-2.0
/**
 * Every call of the addon with every kind of wrong argument, in a process of its own: a TypeError, a negative errno where
 * the type is right, never a crash, and what the process has open is as it was.
 */

import { spawnSync } from 'node:child_process';
import { fstatSync, openSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { isMainThread } from 'node:worker_threads';
import t from 'tap';
import { checkObject, native, Protection } from '../../src/native/index.js';

const SELF = fileURLToPath(import.meta.url);

/** What an argument is, and of which kind no other value is taken. */
type Kind = 'fd' | 'integer' | 'bytes' | 'ints' | 'floats' | 'text' | 'function' | 'parts' | 'memory';
interface Argument {
  readonly kind: Kind;
  readonly value: unknown;
  readonly optional?: boolean;
  /** Values of the right type that are taken: `-1`. */
  readonly least?: number;
}

const detached = new Uint8Array(16);
structuredClone(detached.buffer, { transfer: [detached.buffer] });

const numbers = [Number.NaN, 1.5, -1, -0, 2 ** 31, 2 ** 32, 2 ** 53, 1e300, Infinity, -Infinity, -(2 ** 31)];
const others: unknown[] = [
  undefined,
  null,
  true,
  '0',
  '',
  0n,
  {},
  [],
  () => 0,
  Symbol('0'),
  { valueOf: () => 0 },
];
const arrays = [
  new Int8Array(64),
  new Uint16Array(64),
  new DataView(new ArrayBuffer(64)),
  new ArrayBuffer(64),
];
const typed = [new Uint8Array(64), new Int32Array(64), new Float64Array(8)];

function wrongValues({ kind, optional, least = 0 }: Argument): unknown[] {
  const plain = [...others, ...arrays].filter(
    (value) => !optional || (value !== undefined && value !== null),
  );
  if (kind === 'fd') return [...numbers, ...typed, ...plain];
  if (kind === 'integer') {
    const never = numbers.filter((n) => !Number.isInteger(n) || Object.is(n, -0) || n > 2 ** 52 || n < least);
    return [...never, ...typed, ...plain];
  }
  if (kind === 'text') return [...numbers, ...typed, ...plain.filter((value) => typeof value !== 'string')];
  if (kind === 'function') return [...numbers, ...typed, ...plain.filter((v) => typeof v !== 'function')];
  const own = {
    bytes: Uint8Array,
    parts: Uint8Array,
    memory: Uint8Array,
    ints: Int32Array,
    floats: Float64Array,
  }[kind];
  const wrong = [...numbers, ...plain, ...typed.filter((value) => !(value instanceof own))];
  return kind === 'parts'
    ? [...wrong.filter((v) => !Array.isArray(v)), [1], [null], [new Int8Array(1)]]
    : wrong;
}

const fd: Argument = { kind: 'fd', value: 1000 };
const integer = (value = 0, least = 0): Argument => ({ kind: 'integer', value, least });
const bytes: Argument = { kind: 'bytes', value: new Uint8Array(256) };
const ints: Argument = { kind: 'ints', value: new Int32Array(64) };
const floats: Argument = { kind: 'floats', value: new Float64Array(4) };
const text: Argument = { kind: 'text', value: '/nonexistent/devstate' };
const parts: Argument = { kind: 'parts', value: new Uint8Array(16) };
const maybe = (argument: Argument): Argument => ({ ...argument, optional: true });

/** All calls with arguments of the right types; the fd is not open, so that nothing happens. */
const calls: Record<string, Argument[]> = {
  unixListen: [text, integer(0o600), integer(1)],
  unixConnect: [text],
  accept: [fd],
  socketPair: [{ kind: 'ints', value: new Int32Array(1) }],
  shutdown: [fd, integer()],
  peerCredentials: [fd, ints],
  socketInfo: [fd, ints],
  setSendBuffer: [fd, integer()],
  setReceiveBuffer: [fd, integer()],
  sendMessage: [fd, parts, integer(), integer(16), maybe(ints), integer()],
  receiveMessage: [fd, bytes, integer(), integer(16), ints],
  peekMessage: [fd, bytes, integer(), integer(16), ints],
  datagramListen: [text, integer(0o600)],
  datagramConnect: [text],
  receiveCounted: [fd, bytes, integer(), integer(64), integer(16), maybe(ints)],
  sendCounted: [fd, bytes, integer(), integer(64), integer(16)],
  sameFile: [fd, fd],
  createPoller: [fd, { kind: 'function', value: () => {} }],
  close: [fd],
  closeLater: [fd, integer()],
  closing: [maybe(integer())],
  duplicate: [fd],
  pidfdOpen: [integer(2 ** 30, 1)],
  stat: [fd, floats],
  poll: [fd, integer(), integer()],
  linkFile: [fd, text],
  tryFlock: [fd],
  memfdCreate: [{ kind: 'text', value: 'n'.repeat(300) }],
  truncate: [fd, integer()],
  addSeals: [fd, integer()],
  getSeals: [fd],
  map: [fd, integer(), integer(4096), integer(3)],
  maxRanges: [],
  unmapping: [],
  eventfdCreate: [integer()],
  eventfdSignal: [fd],
  eventfdRead: [fd],
  setLock: [fd, integer(), integer(), integer()],
  testLock: [fd, integer(), integer(), integer()],
  allocate: [fd, integer(1), integer(), integer(1)],
  allocateLater: [fd, integer(1), integer(), integer(1)],
  copyLater: [bytes, bytes],
  equalLater: [bytes, bytes],
  readNow: [fd, parts, integer()],
  writeNow: [fd, parts, integer()],
  outputOpen: [fd, integer()],
  outputWrite: [integer(), bytes, integer()],
  outputState: [integer(), floats],
  outputFlush: [integer(), integer()],
  vfioCall: [fd, integer(), integer()],
  vfioCallStruct: [fd, integer(), bytes],
  vfioCallMemory: [
    fd,
    integer(),
    bytes,
    integer(),
    integer(0, -1),
    { kind: 'memory', value: new Uint8Array(8) },
    integer(),
    integer(8),
  ],
  vfioSetContainer: [fd, fd],
  vfioGetDevice: [fd, text],
  crc32c: [bytes, integer(), integer(16), integer()],
  crc32cPortable: [bytes, integer(), integer(16), integer()],
};

type AnyCall = (...args: unknown[]) => unknown;

function thrown(call: () => unknown): unknown {
  try {
    call();
    return undefined;
  } catch (error) {
    return error;
  }
}

function isTypeError(error: unknown): boolean {
  return error instanceof TypeError;
}

const failures: string[] = [];
function expect(holds: boolean, what: string): void {
  if (!holds) failures.push(what);
}

function callAll(): void {
  for (const name of Object.keys(native)) expect(name in calls, `${name} is not tried`);
  for (const [name, args] of Object.entries(calls)) {
    const raw = (native as unknown as Record<string, AnyCall>)[name]!;
    const call: AnyCall = (...args) => {
      const result = raw(...args);
      if (name === 'eventfdCreate') native.close(result as number);
      return result;
    };
    const values = args.map(({ value }) => value);
    if (name !== 'createPoller')
      expect(thrown(() => call(...values)) === undefined, `${name} as it should be`);
    call(...values, 1, 'more', {}, null, 5, 6, 7, 8, 9);
    const few = args.findIndex(({ optional }) => optional !== true);
    if (few >= 0) expect(isTypeError(thrown(() => call())), `${name} without arguments`);
    for (const [index, argument] of args.entries()) {
      for (const wrong of wrongValues(argument)) {
        const given = values.with(index, wrong);
        const error = thrown(() => call(...given));
        expect(isTypeError(error), `${name}: argument ${index + 1} as ${describe(wrong)}: ${String(error)}`);
      }
      // Without memory, or too little of it: refused or nothing done, not touched.
      if (['bytes', 'ints', 'floats', 'parts', 'memory'].includes(argument.kind)) {
        for (const small of [
          detached,
          new Uint8Array(0),
          new Int32Array(0),
          new Float64Array(0),
          new Int32Array(1),
        ]) {
          const given = values.with(index, small);
          const error = thrown(() => call(...given));
          expect(
            error === undefined || error instanceof TypeError || error instanceof RangeError,
            `${name} ${index}`,
          );
        }
        const shared = new Uint8Array(new SharedArrayBuffer(256));
        const error = thrown(() => call(...values.with(index, shared)));
        expect(error === undefined || isTypeError(error) || error instanceof RangeError, `${name}: shared`);
      }
    }
  }
}

function describe(value: unknown): string {
  return typeof value === 'number'
    ? Object.is(value, -0)
      ? '-0'
      : String(value)
    : Object.prototype.toString.call(value);
}

function callObjects(): void {
  const file = native.memfdCreate('arguments');
  native.truncate(file, 8192);
  const mapping = checkObject(native.map(file, 0, 8192, Protection.readWrite), 'map');
  const event = native.eventfdCreate(0);
  const poller = checkObject(
    native.createPoller(event, () => {}),
    'poller',
  );
  const targets: [string, object, string[]][] = [
    ['Mapping', mapping, ['window', 'part', 'unmap', 'pin', 'unpin']],
    ['Poller', poller, ['start', 'stop', 'close', 'ref', 'unref']],
  ];
  const strangers: unknown[] = [
    undefined,
    null,
    1,
    {},
    [],
    () => 0,
    new Uint8Array(8),
    mapping,
    poller,
    Object.create(mapping),
    Object.create(poller),
  ];
  for (const [kind, object, methods] of targets) {
    const made = thrown(() => new (object.constructor as new () => object)());
    expect(made === undefined || isTypeError(made), `new ${kind}`);
    const empty = made === undefined ? new (object.constructor as new () => object)() : {};
    for (const method of methods) {
      const call = (object as Record<string, AnyCall>)[method]!;
      for (const self of [...strangers.filter((one) => one !== object), empty])
        expect(isTypeError(thrown(() => call.call(self, 1, 1))), `${kind}.${method} of ${describe(self)}`);
    }
  }
  for (const wrong of [...numbers, ...others]) {
    for (const method of ['window', 'part'] as const) {
      const [first, second] = [
        thrown(() => mapping[method](wrong as never, 1)),
        thrown(() => mapping[method](0, wrong as never)),
      ];
      const isNumber =
        typeof wrong === 'number' && Number.isSafeInteger(wrong) && wrong >= 0 && !Object.is(wrong, -0);
      if (!isNumber) expect(isTypeError(first) && isTypeError(second), `${method} ${describe(wrong)}`);
    }
    expect(isTypeError(thrown(() => poller.start(wrong as never))), `start ${describe(wrong)}`);
  }
  expect(isTypeError(thrown(() => poller.start(8))), 'start with an unknown event');
  // A getter of the caller's that takes the memory away while it is looked at.
  const window = new Uint8Array(checkObject(mapping.window(0, 4096), 'window'));
  const takeAway = (): Uint8Array => {
    mapping.unmap();
    return new Uint8Array(8);
  };
  const trap: Uint8Array[] = [window, window];
  Object.defineProperty(trap, 1, { get: takeAway });
  native.writeNow(file, trap, 0);
  const [one] = [thrown(() => native.copyLater(window, new Uint8Array(8)))];
  expect(one === undefined, 'a detached window has no bytes');
  expect((mapping.window(0, 1) as number) < 0, 'no window of what is unmapped');
  expect((mapping.part(0, 1) as number) < 0, 'no part either');
  poller.close();
  native.close(event);
  native.close(file);
}

if (process.argv[2] === 'child' && isMainThread) {
  const before = [0, 1, 2].map((number) => fstatSync(number).ino);
  // The writer of number 0, which the calls of outputs are given.
  native.outputOpen(openSync('/dev/null', 'w'), 1024 * 1024);
  callAll();
  callObjects();
  const after = [0, 1, 2].map((number) => fstatSync(number).ino);
  expect(before.join() === after.join(), 'the standard streams are what they were');
  for (const failure of failures) console.error(failure);
  process.exit(failures.length === 0 ? 0 : 1);
}

t.test('wrong arguments are TypeErrors, and nothing else happens', async (t) => {
  const { status, signal, stderr } = spawnSync(process.execPath, [SELF, 'child'], {
    encoding: 'utf8',
    timeout: 60_000,
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  t.equal(signal, null, stderr);
  t.equal(status, 0, stderr);
});
