// SPDX-License-Identifier: Apache-2.0
/** One VMM follows another: what the executor asks of its host, where a real server or relay would have to be timed. */

import t from 'tap';
import { NextVmm, type NextVmmHost } from '../../src/succession/index.js';
import { socketPair } from '../../src/transport/index.js';
import { Errno, nextVmmStatus } from '../../src/wire/index.js';
import { outcome } from '../support/served.js';

interface Vmm {
  readonly name: string;
  close(): void;
}

const AWAIT = JSON.stringify({ action: 'await', timeoutMs: 60_000 });
const request = (action: string): string => JSON.stringify({ action });

class Host implements NextVmmHost<Vmm, { readonly absorbed: { resets: number; configWrites: number } }> {
  readonly next = new NextVmm(this);
  /** What was asked for, in order. */
  readonly did: string[] = [];
  readonly first = this.#vmm('first');
  readonly second = this.#vmm('second');
  vmm: Vmm | undefined = this.first;
  readonly isNegotiated = true;
  readonly usesIntx = false;
  readonly resets = 0;
  /** Called when an exchange is prepared. */
  preparing: () => void | Promise<void> = () => {};
  releasing: () => void | Promise<void> = () => {};

  #vmm(name: string): Vmm {
    return { name, close: () => this.did.push(`end ${name}`) };
  }

  requireMayBeFollowed(): void {}

  async openUnderstudy() {
    return { absorbed: { resets: 1, configWrites: 2 } };
  }

  serveUnderstudy(): Vmm {
    return this.second;
  }

  hasAgreed(): boolean {
    return true;
  }

  vacate(): void {
    this.did.push('vacate');
  }

  prepareExchange(): void | Promise<void> {
    return this.preparing();
  }

  exchange(_understudy: unknown, up: Vmm | undefined, down: Vmm | undefined): void {
    this.did.push(`${up?.name ?? 'none'} has it, not ${down?.name ?? 'none'}`);
    this.vmm = up;
  }

  closeUnderstudy(): void {
    this.did.push('close the understudy');
  }

  release(): void | Promise<void> {
    this.did.push('release');
    return this.releasing();
  }

  settled(): void {
    this.did.push('settled');
  }

  log(): void {}

  async arrive(): Promise<void> {
    await this.next.request(AWAIT);
    const [one, other] = socketPair();
    this.next.accept(one);
    one.close();
    other.close();
  }

  leave(vmm: Vmm): boolean {
    if (this.vmm === vmm) this.vmm = undefined;
    return this.next.left(vmm);
  }

  get phase(): string {
    return nextVmmStatus.parse(JSON.parse(this.next.status())).phase;
  }
}

t.test('the second leaves while the device is being given to it: the first can have it back', async (t) => {
  const host = new Host();
  await host.arrive();
  host.preparing = () => {
    t.ok(host.leave(host.second), 'the device is kept');
    t.same(host.did, [], 'and nothing is vacated that the device is about to use');
  };
  await host.next.request(request('promote'));
  t.same(host.did, ['none has it, not first']);
  t.equal(host.phase, 'promoted');
  host.preparing = () => {};
  await host.next.request(request('roll-back'));
  t.same(host.did.slice(1), ['first has it, not none', 'close the understudy', 'settled']);
  t.equal(host.vmm, host.first);
});

t.test('the second leaves while that fails: another may come', async (t) => {
  const host = new Host();
  await host.arrive();
  host.preparing = async () => {
    host.leave(host.second);
    throw new Error('the server does not take it');
  };
  await t.rejects(host.next.request(request('promote')), { message: 'the server does not take it' });
  t.same(host.did, ['vacate']);
  t.equal(host.phase, 'awaited');
  t.equal(host.vmm, host.first);
});

t.test('one step at a time', async (t) => {
  const host = new Host();
  await host.arrive();
  let prepared = (): void => {};
  host.preparing = () =>
    new Promise((resolve) => {
      prepared = resolve;
    });
  const promoted = host.next.request(request('promote'));
  t.equal(await outcome(host.next.request(request('roll-back'))), Errno.EBUSY);
  prepared();
  await promoted;
  t.equal(host.phase, 'promoted');
});

t.test('no VMM is left: the request that ends it waits for the device', async (t) => {
  const host = new Host();
  await host.arrive();
  await host.next.request(request('promote'));
  host.leave(host.second);
  let released = (): void => {};
  host.releasing = () =>
    new Promise((resolve) => {
      released = resolve;
    });
  const committed = host.next.request(request('commit'));
  t.ok(host.next.underWay);
  t.same(host.did.slice(1), ['end first', 'close the understudy', 'release']);
  t.equal(await outcome(host.next.request(AWAIT)), Errno.EBUSY);
  released();
  await committed;
  t.notOk(host.next.underWay);
  t.equal(host.did.at(-1), 'settled');
});
