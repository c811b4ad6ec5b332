// SPDX-License-Identifier: Apache-2.0
/**
 * The VMM has mapped 65,535 ranges, and the server or the relay that knows them is replaced, or has to tell another one of
 * them. Every process is one of its own, and the event loop of none stands still for more than docs/architecture.md allows.
 */

import { mkdtempSync, readSync } from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { Client, MigrationClient } from '../../src/client/index.js';
import { TAKEOVER_VARIABLE, takeoverPaths } from '../../src/handoff/index.js';
import { RelayControl } from '../../src/relay/index.js';
import type { Fd } from '../../src/transport/index.js';
import { DmaUnmapFlag, MigrationState } from '../../src/wire/index.js';
import { Devstate } from '../e2e/harness/devstate-process.js';
import { takeStops, watched } from '../support/loop-watch.js';
import { address, MOST, mapAll, PAGE } from '../support/many-maps.js';
import { memfd } from '../support/memory.js';
import { socketFolder } from '../support/served.js';

const TIMEOUT_MS = 60_000;
const timeouts = { prepare: TIMEOUT_MS, freeze: TIMEOUT_MS, adopt: TIMEOUT_MS };
const AWAIT = { action: 'await', timeoutMs: TIMEOUT_MS } as const;
/** A range in the middle of all. */
const MIDDLE = 40_001;

t.setTimeout(600_000);

/** Where processes of one device are, and their arguments. */
class Bed {
  readonly folder: string;
  readonly #test: Test;

  constructor(t: Test) {
    this.#test = t;
    this.folder = socketFolder(t);
  }

  path(name: string): string {
    return join(this.folder, name);
  }

  /** @param name of its sockets @param says what it says once it can be used @param takeover as a successor, from there */
  async start(args: readonly string[], says: RegExp, takeover?: string): Promise<Devstate> {
    const under = takeover === undefined ? [] : ['env', `${TAKEOVER_VARIABLE}=${takeover}`];
    const started = new Devstate(args, under);
    this.#test.teardown(() => started.end());
    await started.saysOnStderr(says);
    await watched(started.process.pid);
    return started;
  }

  serve(name: string, { takeover, more = [] }: { takeover?: string; more?: readonly string[] } = {}) {
    const sockets = ['--socket', this.path(name), '--migration-socket', this.path(`${name}-manager`)];
    const image = ['--image', this.path('image'), '--size', '16M'];
    const args = ['serve', 'nvme', ...sockets, ...image, ...more];
    return this.start(args, takeover === undefined ? /"msg":"serving / : /waiting to take over/, takeover);
  }

  relay(takeover?: string) {
    const sockets = ['--listen', this.path('relay'), '--migration-socket', this.path('relay-manager')];
    const args = ['relay', ...sockets, '--control', this.path('control'), '--server', this.path('server')];
    return this.start(args, takeover === undefined ? /"msg":"relaying / : /waiting to take over/, takeover);
  }

  takeover(): string {
    return mkdtempSync(join(this.folder, 's'));
  }

  async manager(name: string): Promise<MigrationClient> {
    const manager = new MigrationClient(await Client.connect(this.path(`${name}-manager`)));
    this.#test.teardown(() => manager.close());
    return manager;
  }

  /** A VMM that has mapped all that it may, each range a page of one file. */
  async vmm(name: string, memory = this.memory()): Promise<{ vmm: Client; memory: Fd }> {
    const vmm = await Client.connect(this.path(name));
    this.#test.teardown(() => vmm.close());
    await mapAll(vmm, MOST, () => memory.duplicate());
    return { vmm, memory };
  }

  memory(): Fd {
    const memory = memfd(MOST * PAGE);
    this.#test.teardown(() => memory.close());
    return memory;
  }

  /** Has the server at `name` replaced. */
  async replaceServer(name: string): Promise<void> {
    const takeover = this.takeover();
    const next = await this.serve(name, { takeover });
    const manager = await this.manager(name);
    const [format] = (await manager.formats()) ?? [];
    const request = { uuid: format!.uuid, ...format!.version };
    const { handoff: socket } = takeoverPaths(takeover);
    await manager.handOver({ socket, format: request, timeouts }, TIMEOUT_MS);
    await next.saysOnStderr(/took over, successor number 1/);
  }

  /** Has the relay replaced. */
  async replaceRelay(): Promise<Devstate> {
    const takeover = this.takeover();
    const next = await this.relay(takeover);
    const control = await RelayControl.connect(this.path('control'));
    try {
      await control.handOver({ socket: takeoverPaths(takeover).handoff, timeouts }, TIMEOUT_MS);
    } finally {
      control.close();
    }
    await next.saysOnStderr(/took over, successor number 1/);
    return next;
  }

  /** Whoever serves at `name` knows every range, and what is in it. */
  async knowsAll(t: Test, name: string, memory: Fd): Promise<void> {
    const manager = await this.manager(name);
    const maps = await manager.dmaMaps();
    t.equal(maps.length, MOST);
    t.match(maps[MIDDLE], { address: address(MIDDLE), size: PAGE });
    await manager.writeMemory(address(MIDDLE), Uint8Array.of(42));
    t.equal(byteOf(memory, MIDDLE), 42);
  }
}

function byteOf(memory: Fd, page: number): number | undefined {
  const byte = new Uint8Array(1);
  readSync(memory.number, byte, 0, 1, page * PAGE);
  return byte[0];
}

t.test('a server that the VMM is connected to', async (t) => {
  const bed = new Bed(t);
  await bed.serve('server');
  const { vmm, memory } = await bed.vmm('server');
  t.same(takeStops(), [], 'while they are mapped');
  await bed.replaceServer('server');
  t.same(takeStops(), [], 'while they are handed over');
  await bed.knowsAll(t, 'server', memory);
  t.same(takeStops(), [], 'while they are told');
  await vmm.dmaUnmap({ flags: DmaUnmapFlag.ALL, address: 0, size: 0 });
  t.same(await (await bed.manager('server')).dmaMaps(), []);
  t.same(takeStops(), [], 'while they are taken away');
});

t.test('a server behind a relay', async (t) => {
  const bed = new Bed(t);
  await bed.serve('server');
  await bed.relay();
  const { vmm, memory } = await bed.vmm('relay');
  t.same(takeStops(), [], 'while they are mapped');
  await bed.replaceServer('server');
  t.same(takeStops(), [], 'while they are handed over');
  await bed.knowsAll(t, 'server', memory);
  t.same(takeStops(), [], 'while they are told');
  vmm.close();
  const manager = await bed.manager('server');
  while ((await manager.dmaMaps()).length > 0);
  t.same(takeStops(), [], 'while the VMM leaves');
});

t.test('a relay, and then the server behind it', async (t) => {
  const bed = new Bed(t);
  const first = await bed.serve('server');
  await bed.relay();
  const { vmm, memory } = await bed.vmm('relay');
  t.same(takeStops(), [], 'while they are mapped');
  const relay = await bed.replaceRelay();
  t.same(takeStops(), [], 'while they are handed over');
  await bed.knowsAll(t, 'relay', memory);
  t.same(takeStops(), [], 'while they are told');
  await first.end();
  await bed.serve('server');
  await relay.saysOnStderr(/attached to the device server again/);
  await bed.knowsAll(t, 'server', memory);
  t.same(takeStops(), [], 'while the relay tells another server');
  await vmm.dmaUnmap({ flags: DmaUnmapFlag.ALL, address: 0, size: 0 });
  t.same(await (await bed.manager('relay')).dmaMaps(), []);
  t.same(takeStops(), [], 'while they are taken away');
});

for (const name of ['server', 'relay'] as const) {
  t.test(`another VMM at a ${name}, with the same memory and with other`, async (t) => {
    const bed = new Bed(t);
    await bed.serve('server');
    if (name === 'relay') await bed.relay();
    const { memory } = await bed.vmm(name);
    const manager = await bed.manager(name);
    for (const next of [memory, bed.memory()]) {
      await manager.setNextVmm(AWAIT);
      await bed.vmm(name, next);
      t.same(takeStops(), [], 'while they are mapped');
      await manager.setState(MigrationState.STOP);
      await manager.setNextVmm({ action: 'promote' });
      t.same(takeStops(), [], 'while they change hands');
      await manager.setState(MigrationState.RUNNING);
      await manager.setNextVmm({ action: 'commit' });
      await bed.knowsAll(t, 'server', next);
      t.same(takeStops(), [], 'while the first VMM leaves');
    }
  });
}
