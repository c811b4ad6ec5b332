// SPDX-License-Identifier: Apache-2.0
/**
 * A VM with one vfio-user device that can be migrated within a test, with no QEMU: two stand-ins for QEMU, connected by the
 * migration's URI, and two servers of a scratch device, whose one image only one of them can have.
 *
 *     manager ── QMP, qtest ──▶ stand-in ── vfio-user ──▶ server ◀── tap ◀── migration socket ── manager
 */
import { join } from 'node:path';
import { type MigrateOptions, type MigrateResult, migrate } from '../../../src/operations/index.js';
import { Errno, MigrationState, migrationStateName, RequestError } from '../../../src/wire/index.js';
import { MessageTap } from '../../support/message-tap.js';
import { Hosts } from '../../support/qemu-hosts.js';
import { QemuStandIn } from '../../support/qemu-stand-in.js';
import { QuickTime } from '../../support/quick-time.js';
import type { ScratchDevice } from '../../support/scratch-device.js';
import { type Served, serveScratch, socketFolder } from '../../support/served.js';
import { hex, KEPT_AT, STATE, setUpGuest, WRITTEN_AT, writeByDevice } from './guest.js';

export const ID = 'disk0';
const SLOT = 3;
const STATE_BYTES = 4096;

/** What only one of two servers can have: a disk image's lock. */
export class SharedImage {
  owner: ScratchDevice | undefined;

  /** The device takes it, and gives it away, as one of NVMe does. */
  guard(device: ScratchDevice): void {
    device.hook = (step) => {
      if (step === 'acquireExclusive') {
        if (this.owner !== undefined && this.owner !== device)
          throw new RequestError(Errno.EBUSY, 'the image is in use');
        this.owner = device;
      } else if ((step === 'releaseExclusive' || step === 'reset aborted') && this.owner === device)
        this.owner = undefined;
    };
  }
}

/** One host: a QEMU, its device's server, and the way to the migration socket. */
export interface Host {
  readonly qemu: QemuStandIn;
  readonly served: Served & { readonly scratch: ScratchDevice };
  /** Not in the way unless the bed was made with taps. */
  readonly tap: MessageTap;
  /** Where a manager finds the device. */
  readonly manager: string;
}

export interface BedOptions {
  readonly configWay?: 'ecam' | 'ports';
  /** The manager's requests to device servers go by taps. Default true. */
  readonly taps?: boolean;
}

export type Where = 'source' | 'destination';

export class Bed {
  readonly hosts = new Hosts();
  readonly image = new SharedImage();
  readonly time = new QuickTime();
  source!: Host;
  destination!: Host;
  /** What was under way when the outcome came. */
  outcome: MigrateResult | undefined;
  error: { code: string; message: string } | undefined;
  readonly phases: string[] = [];
  /** The commands of both QEMUs, each the first time: `source migrate`. */
  readonly order: string[] = [];
  readonly cancel = new AbortController();
  #before: ReturnType<QemuStandIn['model']['settings']>[] = [];
  #view: ReturnType<Bed['viewAt']> | undefined;
  readonly #folder: string;
  readonly #cleanup: (() => unknown)[] = [];

  private constructor() {
    this.#folder = socketFolder(this);
  }

  /** As a test of tap has it. */
  teardown(work: () => unknown): void {
    this.#cleanup.push(work);
  }

  static async make(options: BedOptions = {}): Promise<Bed> {
    const bed = new Bed();
    bed.source = await bed.#host('source', options);
    bed.destination = await bed.#host('destination', options);
    await bed.#setUp();
    return bed;
  }

  async #host(name: Where, { configWay = 'ecam', taps = true }: BedOptions): Promise<Host> {
    const served = serveScratch(this, { stateSize: STATE_BYTES, vectors: 2 });
    this.image.guard(served.scratch);
    const tap = new MessageTap(join(this.#folder, `${name}.tap`), served.migrationPath);
    const qemu = await QemuStandIn.start(join(this.#folder, `${name}.qmp`), {
      name,
      hosts: this.hosts,
      devices: [{ id: ID, slot: SLOT, socket: served.path }],
      incoming: name === 'destination',
      configWay,
    });
    tap.onExit = () => {
      tap.close();
      // Its lock goes with the process.
      if (this.image.owner === served.scratch) this.image.owner = undefined;
      void served.server.close();
    };
    qemu.before = ({ name: command, nth }) => {
      if (nth === 0) this.order.push(`${name} ${command}`);
    };
    for (const party of [qemu, tap]) {
      party.onActivity = () => this.time.active();
      party.onSilence = () => this.time.hurry();
    }
    return { qemu, served, tap, manager: taps ? tap.path : served.migrationPath };
  }

  /** The guest's driver has set the device up, and the guest has something in its memory. */
  async #setUp(): Promise<void> {
    const { model } = this.source.qemu;
    this.image.owner = this.source.served.scratch;
    const device = await setUpGuest(model, this.source.served.scratch);
    // The guest's program writes memory, and so does the device, by DMA that QEMU does not see.
    model.whileActive = async () => {
      model.ram.bytes.fill(0x22, KEPT_AT, KEPT_AT + 8);
      model.ram.touch(model.ram.base + KEPT_AT, 8);
      if (this.isDeviceThere('source')) await writeByDevice(model, device);
    };
    this.#before = [model.settings(), this.destination.qemu.model.settings()];
    this.#view = this.viewAt('source');
  }

  isDeviceThere(where: Where): boolean {
    const { qemu } = this[where];
    return !qemu.model.ended && qemu.model.devices.some(({ client }) => !client.isClosed);
  }

  get options(): MigrateOptions {
    return {
      sourceQmp: this.source.qemu.path,
      destQmp: this.destination.qemu.path,
      uri: `unix:${join(this.#folder, 'uri')}`,
      devices: [{ id: ID, source: this.source.manager, dest: this.destination.manager }],
      downtimeMs: 300,
      timeoutMs: 600_000,
      bytesPerSecond: 0,
    };
  }

  /** Migrates; what comes of it is in `outcome` or `error`. */
  async migrate(options: Partial<MigrateOptions> = {}): Promise<void> {
    try {
      this.outcome = await migrate(
        { ...this.options, ...options },
        { signal: this.cancel.signal, progress: ({ phase }) => this.#enter(phase) },
      );
    } catch (error) {
      this.error = error as { code: string; message: string };
    }
    this.time.calm();
  }

  get phase(): string {
    return this.phases.at(-1) ?? '';
  }

  #enter(phase: string): void {
    if (this.phases.at(-1) !== phase) this.phases.push(phase);
  }

  viewAt(where: Where) {
    return this[where].qemu.model.devices[0]?.view();
  }

  /** The device's migration state, as its server has it. */
  async stateAt(where: Where): Promise<string> {
    const manager = await this[where].served.manager();
    const state = await manager.state();
    manager.close();
    return migrationStateName(state);
  }

  /** Clients that are still connected, of all that a manager can connect to. */
  get clients(): number {
    const { source, destination } = this;
    return source.qemu.clients + destination.qemu.clients + source.tap.clients + destination.tap.clients;
  }

  /** The manager's process is killed: all its connections end, and nothing that it says arrives any more. */
  killManager(): void {
    for (const { qemu, tap } of [this.source, this.destination]) {
      qemu.isDeaf = true;
      tap.isDeaf = true;
    }
    this.time.hurry();
  }

  /** The next manager can connect. */
  admitManagers(): void {
    for (const { qemu, tap } of [this.source, this.destination]) {
      qemu.isDeaf = false;
      tap.isDeaf = false;
    }
  }

  /** What is not as it is to be when a VM has arrived. */
  async whyNotMoved(): Promise<string[]> {
    const wrong: string[] = [];
    const want = (what: string, found: unknown, wanted: unknown): void => {
      if (JSON.stringify(found) !== JSON.stringify(wanted))
        wrong.push(`${what} is ${JSON.stringify(found)}, not ${JSON.stringify(wanted)}`);
    };
    const { destination } = this;
    want('the VM at the destination', destination.qemu.model.status, 'running');
    want('its device', await this.stateAt('destination'), migrationStateName(MigrationState.RUNNING));
    want("its device's view", this.viewAt('destination'), this.#view);
    if (this.image.owner !== destination.served.scratch) wrong.push('its device does not have the image');
    const memory = destination.qemu.model.ram.bytes;
    want('the memory', hex(memory, KEPT_AT, 16), `${'22'.repeat(8)}${'11'.repeat(8)}`);
    want('what the device wrote', hex(memory, WRITTEN_AT, STATE.length), hex(STATE));
    want('the state', hex(destination.served.scratch.state.memory, 0, STATE.length), hex(STATE));
    return [...wrong, ...this.whyOtherSettings('destination')];
  }

  /** What is not as it was at the source. */
  async whyNotBack(): Promise<string[]> {
    const wrong: string[] = [];
    const { qemu, served } = this.source;
    if (qemu.model.status !== 'running') wrong.push(`the source's VM is ${qemu.model.status}`);
    // A server that is gone cannot be as it was.
    if (this.source.tap.hasEnded) return [...wrong, ...this.whyOtherSettings('source')];
    const state = await this.stateAt('source');
    if (state !== migrationStateName(MigrationState.RUNNING)) wrong.push(`the source's device is ${state}`);
    if (!served.scratch.running) wrong.push("the source's device stands");
    if (this.image.owner !== served.scratch) wrong.push("the source's device does not have the image");
    const view = this.viewAt('source');
    if (JSON.stringify(view) !== JSON.stringify(this.#view))
      wrong.push(`the source's view is ${JSON.stringify(view)}, not ${JSON.stringify(this.#view)}`);
    return [...wrong, ...this.whyOtherSettings('source')];
  }

  /** Migration settings that are not as they were before. */
  whyOtherSettings(where: Where): string[] {
    const [found, before] = [this[where].qemu.model.settings(), this.#before[where === 'source' ? 0 : 1]].map(
      (settings) => JSON.stringify(settings),
    );
    return found === before ? [] : [`the settings of the ${where} are ${found}, not ${before}`];
  }

  async close(): Promise<void> {
    this.time.end();
    for (const { qemu, tap } of [this.source, this.destination]) {
      tap.close();
      await qemu.close();
    }
    for (const work of this.#cleanup.reverse()) await work();
  }
}
