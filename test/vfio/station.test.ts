// SPDX-License-Identifier: Apache-2.0
/**
 * Stations, as far as they go without devices of the kernel (those are in test/e2e/guest): what they are asked, what they
 * refuse, who may ask; and the ends of processes.
 */

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import {
  Channel,
  decodeDocument,
  FIRST_VERSION,
  HANDOFF_VERSION,
  HandoffMessage,
  packDocument,
  unpackDocument,
} from '../../src/documents/index.js';
import {
  encodeEntries,
  encodeTransferred,
  FdKind,
  isRunning,
  LEASE_NAME,
  Lease,
  processOf,
  thisProcess,
} from '../../src/handoff/index.js';
import { closeAll, connect } from '../../src/transport/index.js';
import {
  askStatus,
  askToGive,
  Container,
  Group,
  type Operator,
  type StationOptions,
  VfioStation,
} from '../../src/vfio/index.js';
import { ProcessWatch } from '../../src/vfio/process-watch.js';
import { eventfd } from '../handoff/support.js';
import { openNumbers, requireClosed, withoutLeak } from '../support/closes.js';
import { memfd } from '../support/memory.js';

interface Place {
  readonly path: string;
  readonly station: VfioStation;
}

async function withStations(
  t: Test,
  count: number,
  work: (...places: Place[]) => Promise<void>,
  options: StationOptions = {},
  operator: Operator = {},
): Promise<void> {
  await withoutLeak(t, async () => {
    const directory = mkdtempSync(join(tmpdir(), 'vfio-'));
    const places = Array.from({ length: count }, (_, index) => {
      const path = join(directory, `${index}`);
      return { path, station: new VfioStation(path, operator, options) };
    });
    try {
      await work(...places);
    } finally {
      for (const { station } of places) await station.close();
      rmSync(directory, { recursive: true });
    }
  });
}

t.test('a station without devices says so, and has none to give', (t) =>
  withStations(t, 2, async (first, second) => {
    t.match(await askStatus(first!.path), {
      pid: process.pid,
      lends: false,
      held: false,
      generation: null,
      owner: null,
      devices: [],
    });
    await t.rejects(askToGive(first!.path, second!.path, 1000), {
      code: 'DEVSTATE_E_VFIO_LEASE',
      message: /no devices to give/,
    });
    t.equal(statSync(first!.path).mode & 0o777, 0o600);
  }),
);

t.test('others may connect when there are users, and are checked', (t) =>
  withStations(
    t,
    1,
    async (only) => {
      t.equal(statSync(only!.path).mode & 0o777, 0o666, 'whatever the umask');
    },
    { users: [65534] },
  ),
);

t.test('what a station does not understand is refused, and the next is answered', (t) =>
  withStations(t, 1, async (only) => {
    const channel = new Channel(await connect(only!.path));
    const ask = async (type: number, payload: Uint8Array): Promise<unknown> => {
      await channel.send(type as HandoffMessage, payload);
      const answer = await channel.expect(HandoffMessage.RESPONSE);
      return unpackDocument(answer.payload.subarray(4));
    };
    const { REQUEST, ADOPTED } = HandoffMessage;
    const asked = (request: unknown) => Uint8Array.from([1, 0, 0, 0, ...packDocument(request)]);
    const refused = (message: RegExp) => ({ error: { code: 'DEVSTATE_E_HANDOFF_BUNDLE', message } });
    t.match(await ask(ADOPTED, asked(null)), refused(/message of type 5 is not known here/));
    t.match(await ask(REQUEST, asked({ command: 'explode' })), refused(/the request is wrong at command/));
    t.match(
      await ask(REQUEST, asked({ command: 'give', to: '', timeoutMs: 1 })),
      refused(/the request is wrong at to/),
    );
    t.match(await ask(REQUEST, new TextEncoder().encode('{"a":{}}')), refused(/behind it/));
    t.match(await ask(REQUEST, new Uint8Array(2)), refused(/has no number/));
    t.match(await ask(REQUEST, asked({ command: 'status' })), { answer: { held: false } });
    channel.end();
    const noise = await connect(only!.path);
    const raw = new Channel(noise);
    await raw.send(99 as HandoffMessage, new Uint8Array(10));
    t.match(unpackDocument((await raw.next()).payload.subarray(4)), refused(/message of type 99/));
    raw.end();
    t.equal((await askStatus(only!.path)).held, false, 'it continues');
  }),
);

t.test('who asks in the first version is refused in that', (t) =>
  withStations(t, 1, async (only) => {
    const channel = new Channel(await connect(only!.path));
    await channel.sendDocument(32, { command: 'status' }, FIRST_VERSION);
    const { version, type, payload } = await channel.next();
    t.same([version, type], [FIRST_VERSION, 33]);
    t.match(decodeDocument(payload, version), {
      error: {
        code: 'DEVSTATE_E_HANDOFF_BUNDLE',
        message: /speaks version 1 of the handoff, this one 2: both/,
      },
    });
    channel.end();
  }),
);

t.test('what is handed over and is no assignment is refused, and nothing of it is kept', async (t) => {
  const offer = { handoff: HANDOFF_VERSION, what: 'vfio', version: 1, locked: 0, devices: [] };
  const document = {
    version: 1,
    space: { kind: 'container' },
    groups: [],
    devices: [],
    memory: [],
    dma: [],
    bell: false,
    application: null,
  };
  const cases: [string, unknown, unknown, RegExp][] = [
    [
      'another thing',
      { ...offer, what: 'device-server' },
      document,
      /phase prepare: the offer is wrong at what/,
    ],
    [
      'more than may be locked',
      { ...offer, locked: -1 },
      document,
      /phase prepare: the offer is wrong at locked/,
    ],
    [
      'another version',
      offer,
      { ...document, version: 2 },
      /phase adopt: the assignment's document is wrong at version/,
    ],
    ['no container', offer, document, /phase adopt: the fd dma is missing/],
    ['too many mappings', offer, { ...document, dma: 7 }, /wrong at dma/],
  ];
  for (const [name, offered, described, message] of cases) {
    await t.test(name, (t) =>
      withStations(t, 1, async (only) => {
        const channel = new Channel(await connect(only!.path));
        const lease = Lease.create(1);
        const fd = eventfd();
        await channel.sendDocument(HandoffMessage.PREPARE, offered, FIRST_VERSION);
        const said = await channel.next();
        if (said.type === HandoffMessage.READY) {
          const entries = [
            { kind: FdKind.EVENTFD, name: 'irq:x:0:0' },
            { kind: FdKind.LEASE, name: LEASE_NAME },
          ];
          await channel.send(HandoffMessage.FDS, encodeEntries(entries), [fd, lease.fd]);
          lease.offer();
          await channel.send(HandoffMessage.TRANSFERRED, encodeTransferred(2, described, lease.number));
        }
        const refusal = said.type === HandoffMessage.REFUSED ? said : await channel.next();
        t.equal(refusal.type, HandoffMessage.REFUSED);
        t.match(unpackDocument(refusal.payload), {
          message: new RegExp(message.source.replace(/^.*?: /, '')),
        });
        t.ok(said.type === HandoffMessage.REFUSED || lease.takeBack(), 'the giver continues');
        channel.end();
        lease.close();
        closeAll([fd]);
        t.equal((await askStatus(only!.path)).devices.length, 0);
      }),
    );
  }
});

t.test('a process that ends is noticed, and one that has ended already', async (t) => {
  const before = openNumbers();
  const child = spawn('sleep', ['1000'], { stdio: 'ignore' });
  const identity = processOf(child.pid ?? 0);
  t.ok(isRunning(identity));
  const ended = new Promise<void>((resolve) => {
    new ProcessWatch(identity, resolve);
  });
  child.kill('SIGKILL');
  // Watching does not keep a process alive; waiting for the child's end does.
  await Promise.all([ended, once(child, 'exit')]);
  t.notOk(isRunning(identity));
  await new Promise<void>((resolve) => {
    new ProcessWatch(identity, resolve);
  });
  await new Promise<void>((resolve) => {
    new ProcessWatch({ ...thisProcess(), startTime: 1 }, resolve);
  });
  await requireClosed(t, before);
});

t.test('files of VFIO are what they are called', async (t) => {
  const memory = memfd(4096);
  t.teardown(() => memory.close());
  t.throws(() => Group.open('no-such-group'), {
    code: 'DEVSTATE_E_VFIO_GROUP',
    message: /bound to vfio-pci/,
  });
  const none = new Container(memory.duplicate());
  t.throws(() => none.apiVersion(), {
    code: 'DEVSTATE_E_VFIO',
    message: /ENOTTY: this kernel does not know/,
  });
  none.close();
});
