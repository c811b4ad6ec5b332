// SPDX-License-Identifier: Apache-2.0
/** Back ends that are replaced: under load, with state and without, and every way in which that can fail. */

import { createServer, type Socket } from 'node:net';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { BLOCK_BYTES, BlockWriter, GuestMachine, NvmeDriver } from '../../src/guest-driver/index.js';
import { RelayControl } from '../../src/relay/index.js';
import {
  CONFIG_READS_KEPT,
  Errno,
  MIN_IMAGE_BYTE,
  MigrationState,
  PciIrq,
  PciRegion,
  WitnessedVmm,
} from '../../src/wire/index.js';
import { TestBed } from '../guest-driver/served-nvme.js';
import { eventfd, memfd, signals } from '../support/memory.js';
import { Register, SCRATCH_ID } from '../support/scratch-device.js';
import { outcome, resources, socketFolder, until } from '../support/served.js';
import { RelayBed } from './support.js';

const BLOCKS = 256;

/** A guest whose disk is behind the relay that listens there. */
async function guestAt(t: Test, listenPath: string): Promise<NvmeDriver> {
  const machine = await GuestMachine.start(listenPath, { memoryBytes: 8 * 1024 * 1024 });
  const driver = await NvmeDriver.start(machine, { queues: 2, queueEntries: 16 });
  t.teardown(() => {
    driver.detach();
    machine.close();
  });
  return driver;
}

t.test('an NVMe guest under load: eight servers, one after the other', async (t) => {
  const bed = new TestBed(t, BLOCKS * BLOCK_BYTES);
  const first = await bed.serve();
  const { relay, listenPath } = new RelayBed(t, { serverPath: first.socketPath });
  const driver = await guestAt(t, listenPath);
  const load = new BlockWriter(driver, { blocks: BLOCKS, depth: 12 });
  await load.progress(100);
  const held: number[] = [];
  for (let i = 0; i < 8; i++) {
    const next = await bed.serve({ incoming: true });
    const report = await relay.switchTo(next.socketPath, true);
    t.ok(report.stateBytes > 0);
    held.push(report.heldMs);
    await load.progress(100);
  }
  await load.stop();
  t.ok(load.checkImage(bed.content()) > 50, `${load.written} writes: the image is what was written`);
  t.equal(await load.readBack(), BLOCKS);
  t.match(driver.counters, { failed: 0, timedOut: 0, late: 0 });
  t.comment(`held ${held.map((ms) => ms.toFixed(1)).join(', ')} ms; longest operation ${load.longestMs} ms`);
});

t.test('a server on another image does not take the state', async (t) => {
  const bed = new TestBed(t, BLOCKS * BLOCK_BYTES);
  const other = new TestBed(t, BLOCKS * BLOCK_BYTES);
  const first = await bed.serve();
  await other.serve();
  const { relay, listenPath } = new RelayBed(t, { serverPath: first.socketPath });
  const driver = await guestAt(t, listenPath);
  const next = await other.serve({ incoming: true });
  await t.rejects(relay.switchTo(next.socketPath, true), {
    code: 'DEVSTATE_E_INCOMPATIBLE',
    message: /works on another image.*--image-unchecked/,
  });
  t.equal(await first.manager.state(), MigrationState.RUNNING, 'the old one runs as before');
  t.same(
    (await first.manager.images(MIN_IMAGE_BYTE))?.map(({ locked }) => locked),
    [true],
    'and has its lock',
  );
  await driver.flush();
  // Two servers lock the other image now: with the check left out it is the lock that ends this.
  await t.rejects(relay.switchTo(next.socketPath, true, { imageUnchecked: true }), {
    message: /continues/,
  });
  await driver.flush();
});

t.test('memory by messages: what the old server waits for still reaches it', async (t) => {
  const bed = new TestBed(t, BLOCKS * BLOCK_BYTES);
  const first = await bed.serve();
  const { relay, listenPath } = new RelayBed(t, { serverPath: first.socketPath });
  const machine = await GuestMachine.start(listenPath, { memoryBytes: 4 * 1024 * 1024, shareMemory: false });
  const driver = await NvmeDriver.start(machine, { queues: 1, queueEntries: 16 });
  t.teardown(() => {
    driver.detach();
    machine.close();
  });
  const load = new BlockWriter(driver, { blocks: BLOCKS, depth: 12 });
  for (let i = 0; i < 3; i++) {
    await load.progress(50);
    await relay.switchTo((await bed.serve({ incoming: true })).socketPath, true);
  }
  await load.progress(50);
  await load.stop();
  t.equal(await load.readBack(), BLOCKS);
  t.match(driver.counters, { failed: 0, timedOut: 0, late: 0 });
});

/** A relay in front of a scratch device, and paths for others. */
async function scratches(t: Test, holdMs?: number) {
  const bed = new RelayBed(t, {
    ...(holdMs === undefined ? {} : { holdMs }),
  });
  const old = bed.serveScratch();
  const vmm = await bed.vmm();
  const state = Uint8Array.from({ length: 4096 }, (_, i) => (i * 11) % 241);
  await vmm.regionWrite(2, 0, state);
  const path = join(bed.folder, 'next');
  const whole = async () => {
    const bytes = new Uint8Array(4096);
    await vmm.regionRead(2, 0, bytes);
    return bytes;
  };
  const serveNext = (options: Parameters<RelayBed['serveScratch']>[0] = {}) =>
    bed.serveScratch({ socketPath: path, ...options });
  return { bed, old, vmm, state, path, whole, serveNext };
}

for (const migration of ['v2', 'v1', 'both'] as const) {
  t.test(`with state, servers of ${migration}`, async (t) => {
    const bed = new RelayBed(t);
    const old = bed.serveScratch({ migration });
    const vmm = await bed.vmm();
    await vmm.regionWrite(2, 0, Uint8Array.of(1, 2, 3));
    const next = bed.serveScratch({ migration, socketPath: join(bed.folder, 'next') });
    await bed.relay.switchTo(join(bed.folder, 'next'), true);
    t.same(next.scratch.state.memory.subarray(0, 3), Uint8Array.of(1, 2, 3));
    t.ok(next.scratch.running);
    await until(() => old.scratch.calls.includes('reset disconnected'));
    const bytes = new Uint8Array(3);
    await vmm.regionRead(2, 0, bytes);
    t.same(bytes, Uint8Array.of(1, 2, 3));
  });
}

/** A hook for the moment when another's state is loaded; before, a device loads its own, for a try. */
function whenLoading(action: () => void | Promise<void>): (step: string) => void | Promise<void> {
  let commits = 0;
  return (step) => (step === 'commit' && ++commits === 2 ? action() : undefined);
}

t.test('without state', async (t) => {
  const { bed, path, whole, serveNext } = await scratches(t);
  const next = serveNext();
  const report = await bed.relay.switchTo(path, false);
  t.match(report, { withState: false, stateBytes: 0, server: path });
  t.same(await whole(), new Uint8Array(4096));
  await bed.servers[0]!.server.close();
  t.ok(next.scratch.running, 'the old one is not missed');
  await next.server.close();
  serveNext();
  await bed.said('attached');
  t.equal(bed.relay.serverPath, path, 'and the next one is looked for where the last one was');
});

t.test('whatever fails, the old server continues', async (t) => {
  const { bed, old, vmm, state, path, whole, serveNext } = await scratches(t, 400);
  const attempt = async (what: string, pattern: RegExp): Promise<void> => {
    await t.rejects(bed.relay.switchTo(path, true), { message: pattern }, what);
    t.ok(bed.relay.isAttached, what);
    t.same(await whole(), state, what);
    t.ok(old.scratch.running, what);
  };
  await vmm.deviceInfo();
  const steady = resources();
  let wake: () => void = () => {};
  await attempt('no server is there', /cannot connect/);

  const cases: [string, RegExp, (next: ReturnType<typeof serveNext>) => void][] = [
    [
      'it refuses the state',
      /continues/,
      ({ scratch }) => {
        scratch.hook = whenLoading(() => {
          throw new Error('no');
        });
      },
    ],
    [
      'it does not run',
      /continues/,
      ({ scratch }) => {
        scratch.hook = (step) => {
          if (step === 'resume') throw new Error('no');
        };
      },
    ],
    [
      'it hangs',
      /longer than the 280 ms that the VMM can wait; the old server continues/,
      ({ scratch }) => {
        scratch.hook = whenLoading(
          () =>
            new Promise((resolve) => {
              wake = resolve;
            }),
        );
      },
    ],
    [
      'it dies in the middle',
      /continues/,
      ({ scratch, server }) => {
        scratch.hook = whenLoading(() => void server.close());
      },
    ],
    [
      'it cannot even load its own state',
      /refuses DEVICE_FEATURE/,
      ({ scratch }) => {
        scratch.hook = (step) => {
          if (step === 'commit') throw new Error('no');
        };
      },
    ],
    [
      'the old one cannot save',
      /continues/,
      () => {
        old.scratch.hook = (step) => {
          if (step === 'save final') throw new Error('no');
        };
      },
    ],
    [
      'the old one does not stop',
      /continues/,
      () => {
        old.scratch.hook = (step) => {
          if (step === 'quiesce') throw new Error('no');
        };
      },
    ],
  ];
  for (const [what, pattern, prepare] of cases) {
    const next = serveNext();
    prepare(next);
    await attempt(what, pattern);
    old.scratch.hook = () => {};
    next.scratch.hook = () => {};
    wake();
    await next.server.close();
  }
  const other = serveNext({ stateSize: 8192 });
  await attempt('another device', /does not serve what the VMM knows/);
  await other.server.close();
  t.same(resources(), steady, 'nothing is left of the attempts');

  serveNext();
  await bed.relay.switchTo(path, true);
  t.same(await whole(), state);
});

t.test('the old server dies while its state is taken', async (t) => {
  const { bed, old, vmm, path, serveNext } = await scratches(t);
  serveNext();
  old.scratch.hook = (step) => {
    if (step === 'save final') void old.server.close();
  };
  const waiting = until(() => old.scratch.calls.includes('quiesce')).then(async () => {
    const bytes = new Uint8Array(4);
    await vmm.regionRead(0, Register.ID, bytes);
    return new DataView(bytes.buffer).getUint32(0, true);
  });
  await t.rejects(bed.relay.switchTo(path, true), { message: /gone too/ });
  bed.serveScratch();
  t.equal(await waiting, SCRATCH_ID, 'another one at its path has the access that waited');
});

t.test('what comes while the VMM waits is done afterwards, in order', async (t) => {
  const { bed, vmm, path, serveNext } = await scratches(t);
  const next = serveNext();
  let release: () => void = () => {};
  next.scratch.hook = whenLoading(
    () =>
      new Promise((resolve) => {
        release = resolve;
      }),
  );
  const switched = bed.relay.switchTo(path, true);
  await until(() => next.scratch.calls.filter((step) => step === 'commit').length === 2);
  t.notOk(bed.relay.isAttached);
  await t.rejects(bed.relay.switchTo(path, true), { code: 'DEVSTATE_E_RELAY' }, 'one at a time');
  const manager = await outcome(bed.manager());
  t.equal(manager, Errno.EBUSY, 'no managers meanwhile');
  const word = (value: number) => Uint8Array.of(value, 0, 0, 0);
  void vmm.regionWrite(0, Register.KEPT, word(1), { noReply: true });
  void vmm.regionWrite(0, Register.KEPT, word(2));
  const bytes = new Uint8Array(4);
  const read = vmm.regionRead(0, Register.KEPT, bytes);
  await vmm.regionWrite(0, Register.KEPT, word(3), { noReply: true });
  release();
  await switched;
  await read;
  t.same(bytes, word(2));
  await vmm.regionRead(0, Register.KEPT, bytes);
  t.same(bytes, word(3));
});

t.test('what the VMM maps while the new server prepares reaches both', async (t) => {
  const { bed, old, vmm, path, serveNext } = await scratches(t);
  const [memory, irq] = [memfd(8192), eventfd()];
  t.teardown(() => {
    memory.close();
    irq.close();
  });
  const map = (address: number) => vmm.dmaMap({ flags: 3, offset: 0, address, size: 4096 }, memory);
  await map(0x10000);
  const next = serveNext();
  let release: () => void = () => {};
  next.scratch.hook = (step) =>
    step === 'commit'
      ? new Promise((resolve) => {
          release = resolve;
        })
      : undefined;
  const switched = bed.relay.switchTo(path, true);
  await until(() => next.scratch.calls.includes('commit'));
  t.ok(bed.relay.isAttached, 'the VMM continues meanwhile');
  await map(0x20000);
  await vmm.dmaUnmap({ flags: 0, address: 0x10000, size: 4096 });
  await vmm.assignEventfds(PciIrq.MSIX, [irq]);
  const ranges = ({ scratch }: typeof next) => scratch.host.memory.regions.map(({ address }) => address);
  t.same(ranges(old), [0x20000]);
  t.same(ranges(next), [0x10000]);
  next.scratch.hook = () => {};
  release();
  await switched;
  t.same(ranges(next), [0x20000]);
  next.scratch.host.interrupts.triggerMsix(0);
  t.equal(signals(irq), 1);
});

t.test('not while a manager migrates the device, and not without a VMM', async (t) => {
  const { bed, vmm, path, serveNext } = await scratches(t);
  serveNext();
  const manager = await bed.manager();
  await manager.setState(MigrationState.STOP_COPY);
  await t.rejects(bed.relay.switchTo(path, true), { message: /STOP_COPY.*under way/ });
  await manager.setState(MigrationState.RUNNING);
  await bed.relay.switchTo(path, true);
  vmm.close();
  await bed.said('the VMM has left');
  await t.rejects(bed.relay.switchTo(path, true), { code: 'DEVSTATE_E_RELAY' });
});

t.test('by its control socket', async (t) => {
  const bed = new RelayBed(t);
  const { controlPath: control } = bed;
  bed.serveScratch();
  await bed.vmm();
  const server = join(bed.folder, 'next');
  bed.serveScratch({ socketPath: server });
  const relay = await RelayControl.connect(control);
  t.teardown(() => relay.close());
  await relay.requireRelay();
  t.match(await relay.switchTo({ server, state: 'with' }), { server });
  await t.rejects(relay.switchTo({ server: '/nowhere', state: 'with' }), { code: 'DEVSTATE_E_CONNECT' });
  await t.rejects(relay.switchTo({ server: '', state: 'with' }), { code: 'DEVSTATE_E_USAGE' });
  t.same(await relay.handoffStatus(), { generation: 0, serving: true });
  await bed.relay.close();
  await t.rejects(relay.handoffStatus(), { code: 'DEVSTATE_E_CONNECTION_CLOSED' });
  await t.rejects(RelayControl.connect(control), { code: 'DEVSTATE_E_CONNECT' });
});

t.test('the control socket tells what the VMM reads', async (t) => {
  const bed = new RelayBed(t);
  bed.serveScratch();
  const relay = await RelayControl.connect(bed.controlPath);
  t.teardown(() => relay.close());
  t.ok(await relay.canWitness());
  const since = (number: number) => relay.configReads({ since: number, vmm: WitnessedVmm.PRESENT });
  await t.rejects(since(0), /no such VMM is connected/);
  const vmm = await bed.vmm();
  const { next } = await since(Number.MAX_SAFE_INTEGER);
  await vmm.regionRead(PciRegion.CONFIG, 4, new Uint8Array(2));
  t.same(await since(next), { next: next + 1, reads: [{ offset: 4, length: 2 }] });
  // As long as an answer can become.
  const target = new Uint8Array(4);
  for (let i = 0; i < CONFIG_READS_KEPT; i++) await vmm.regionRead(PciRegion.CONFIG, 0xc, target);
  t.equal((await since(0)).reads.length, CONFIG_READS_KEPT);
  await t.rejects(relay.configReads({ since: 0, vmm: WitnessedVmm.OTHER }), /no such VMM is connected/);
});

t.test('what is no relay is found out before anything is begun', async (t) => {
  const folder = socketFolder(t);
  const answers = {
    'says nothing': () => {},
    closes: (client: Socket) => client.end(),
    'closes with something unread': (client: Socket) => client.destroy(),
    'says something else': (client: Socket) => client.write('HTTP/1.1 400 Bad Request\r\n\r\n'),
    'is a relay of before, which read lines': (client: Socket) =>
      client.on('data', (bytes) => {
        if (bytes.includes('\n'))
          client.write('{"error":{"code":"DEVSTATE_E_USAGE","message":"it is no JSON"}}\n');
      }),
  };
  for (const [name, answer] of Object.entries(answers)) {
    const path = join(folder, 'other');
    const clients: Socket[] = [];
    const other = createServer((client) => {
      clients.push(client);
      client.on('error', () => {});
      answer(client);
    });
    await new Promise<void>((resolve) => other.listen(path, resolve));
    const control = await RelayControl.connect(path);
    await t.rejects(
      control.requireRelay(200),
      { code: 'DEVSTATE_E_CONNECT', message: /the path that the relay has as --control/ },
      name,
    );
    control.close();
    for (const client of clients) client.destroy();
    await new Promise((resolve) => other.close(resolve));
  }
});
