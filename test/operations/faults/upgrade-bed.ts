// SPDX-License-Identifier: Apache-2.0
/**
 * A VM with one vfio-user device whose QEMU can be replaced within a test by cpr-transfer or cpr-exec, with no QEMU:
 * stand-ins for the old and the new one, which have the same memory, and one server of a scratch device, which takes a
 * second VMM.
 *
 *     manager ── QMP, qtest ──▶ old and new stand-in ── vfio-user ──▶ server ◀── tap ◀── migration socket ── manager
 *        │                                │
 *        │                                └── executes (cpr-exec) ──▶ a program that is a new stand-in in its place
 *        └── starts (cpr-transfer) ──▶ a process that is the new one's
 */
import { readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import { GuestRam, PAGE_SIZE } from '../../../src/guest-driver/index.js';
import {
  type UpgradeQemuOptions,
  type UpgradeQemuResult,
  upgradeQemu,
} from '../../../src/operations/index.js';
import { migrationStateName } from '../../../src/wire/index.js';
import { MessageTap } from '../../support/message-tap.js';
import { NewQemu } from '../../support/new-qemu.js';
import { devicesIn, fileIn, qemuArguments, qmpIn } from '../../support/qemu-arguments.js';
import { Hosts } from '../../support/qemu-hosts.js';
import { QemuStandIn } from '../../support/qemu-stand-in.js';
import { QuickTime } from '../../support/quick-time.js';
import type { ScratchDevice } from '../../support/scratch-device.js';
import { type Served, serveScratch, socketFolder } from '../../support/served.js';
import { ID } from './bed.js';
import { hex, KEPT_AT, STATE, setUpGuest } from './guest.js';

export type Mode = UpgradeQemuOptions['mode'];

const SLOT = 3;
/** A program that the old QEMU can execute. */
const PROGRAM = '/opt/qemu/bin/qemu-system';
const RAM_BYTES = 16 * PAGE_SIZE;
/** How often to see whether a process that comes or goes has done so, ms. */
const LOOK_AGAIN_MS = 2;

export class UpgradeBed {
  readonly hosts = new Hosts();
  readonly time = new QuickTime();
  readonly ram = new GuestRam(RAM_BYTES);
  readonly mode: Mode;
  old!: QemuStandIn;
  /** The new QEMU, once its devices were made. */
  next: QemuStandIn | undefined;
  /** The process of one that comes by cpr-transfer. */
  newQemu!: NewQemu;
  served!: Served & { readonly scratch: ScratchDevice };
  /** Between the manager and the server. */
  tap!: MessageTap;
  outcome: UpgradeQemuResult | undefined;
  error: { code: string; message: string } | undefined;
  readonly phases: string[] = [];
  readonly cancel = new AbortController();
  /** Called before the new QEMU is asked anything. */
  onNew: (qemu: QemuStandIn) => void = () => {};
  /** Why the program that was executed has ended at once. */
  failure: unknown;
  #starting: Promise<void> | undefined;
  #before: ReturnType<QemuStandIn['model']['settings']> | undefined;
  #view: ReturnType<UpgradeBed['viewOf']> | undefined;
  #isSilent = false;
  #isOver = false;
  readonly #folder: string;
  readonly #cleanup: (() => unknown)[] = [];

  private constructor(mode: Mode) {
    this.mode = mode;
    this.#folder = socketFolder(this);
  }

  /** As a test of tap has it. */
  teardown(work: () => unknown): void {
    this.#cleanup.push(work);
  }

  static async make(mode: Mode): Promise<UpgradeBed> {
    const bed = new UpgradeBed(mode);
    await bed.#setUp();
    return bed;
  }

  async #setUp(): Promise<void> {
    const { hosts, ram } = this;
    this.served = serveScratch(this, { stateSize: 4096, vectors: 2 });
    this.tap = new MessageTap(join(this.#folder, 'tap'), this.served.migrationPath);
    this.tap.onExit = () => {
      this.tap.close();
      void this.served.server.close();
    };
    const devices = [{ id: ID, slot: SLOT, socket: this.served.path }];
    this.old = await QemuStandIn.start(join(this.#folder, 'old'), {
      name: 'the old QEMU',
      hosts,
      ram,
      devices,
    });
    this.newQemu = await NewQemu.listen(join(this.#folder, 'new.process'), {
      hosts,
      ram,
      begun: (qemu) => this.#begun(qemu),
    });
    hosts.programs.set(PROGRAM, (command) => {
      this.#starting = this.startProgram(command);
      return this.#starting;
    });
    this.#listenTo(this.old);
    this.#listenTo(this.tap);
    await setUpGuest(this.old.model, this.served.scratch);
    this.#before = this.old.model.settings();
    this.#view = this.viewOf(this.old);
  }

  #begun(qemu: QemuStandIn): void {
    this.next = qemu;
    this.#listenTo(qemu);
    this.onNew(qemu);
  }

  /** Plays the program that the old QEMU has executed; one whose device cannot be made, or that finds no VM, ends. */
  startProgram = async (command: readonly string[]): Promise<void> => {
    const { hosts, ram } = this;
    const [devices, incoming] = [devicesIn(command), { from: fileIn(command) }];
    try {
      this.#begun(
        await QemuStandIn.start(qmpIn(command), { name: 'the new QEMU', hosts, ram, devices, incoming }),
      );
    } catch (error) {
      this.failure = error;
    }
  };

  #listenTo(party: QemuStandIn | MessageTap): void {
    party.onActivity = () => this.time.active();
    party.onSilence = () => {
      this.#isSilent = true;
      this.time.hurry();
    };
  }

  get options(): UpgradeQemuOptions {
    const device = { id: ID, slot: SLOT, socket: this.served.path };
    const isExec = this.mode === 'cpr-exec';
    return {
      mode: this.mode,
      sourceQmp: this.old.path,
      devices: [{ id: ID, server: this.tap.path }],
      command: isExec
        ? [PROGRAM, ...qemuArguments(this.newPath, device)]
        : this.newQemu.command(this.newPath, device),
      timeoutMs: 500_000,
    };
  }

  /** Where the new QEMU offers QMP. */
  get newPath(): string {
    return this.mode === 'cpr-exec' ? this.old.path : join(this.#folder, 'new');
  }

  /** Upgrades; what comes of it is in `outcome` or `error`. */
  async upgrade(): Promise<void> {
    try {
      this.outcome = await upgradeQemu(this.options, {
        signal: this.cancel.signal,
        progress: ({ phase }) => this.#enter(phase),
      });
    } catch (error) {
      this.error = error as { code: string; message: string };
    }
    this.#isOver = true;
    this.time.calm();
  }

  /** The one that it is in; the last one before a rollback. */
  get phase(): string {
    return this.phases.findLast((phase) => phase !== 'rollback') ?? '';
  }

  #enter(phase: string): void {
    this.phases.push(phase);
    const { newQemu } = this;
    // No limit comes to its end because a real process takes its time.
    if (this.mode === 'cpr-exec') return;
    if (phase === 'start') void this.#allowTime(() => newQemu.args === undefined && !this.#isSilent);
    if (phase === 'rollback')
      void this.#allowTime(() => newQemu.isAlive && this.old.silent !== 'hang' && !this.old.model.ended);
  }

  async #allowTime(isUnderWay: () => boolean): Promise<void> {
    while (!this.#isOver && isUnderWay()) {
      this.time.active();
      await pause(LOOK_AGAIN_MS);
    }
  }

  viewOf(qemu: QemuStandIn | undefined) {
    return qemu?.model.devices[0]?.view();
  }

  /** The device's migration state and its VMMs, as its server has them. */
  async device(): Promise<{ state: string; vmms: string }> {
    const manager = await this.served.manager();
    const [state, { phase }] = [await manager.state(), await manager.nextVmm()];
    manager.close();
    return { state: migrationStateName(state), vmms: phase };
  }

  /** Clients that are still connected, of all that a manager can connect to. */
  get clients(): number {
    return this.old.clients + (this.next?.clients ?? 0) + this.tap.clients;
  }

  /** Folders of operations that are still there. */
  get folders(): string[] {
    return readdirSync(tmpdir()).filter((name) => name.startsWith(`devstate-qemu-${process.pid}-`));
  }

  /** What is not as it is to be when the new QEMU has the VM. */
  async whyNotReplaced(): Promise<string[]> {
    const { next, newQemu, old } = this;
    const wrong = await this.#whyNotIn(next);
    if (this.mode === 'cpr-transfer' && !newQemu.isAlive) wrong.push("the new QEMU's process has ended");
    if (old.model.isRunning) wrong.push('the VM runs in the old QEMU');
    const settings = next?.model.settings();
    return [...wrong, ...this.#differs('the new settings', settings, this.#before)];
  }

  /** What is not as it was. */
  async whyNotBack(): Promise<string[]> {
    const { old, newQemu } = this;
    const wrong = this.#differs('the settings', old.model.settings(), this.#before);
    if (newQemu.isAlive) wrong.push("the new QEMU's process is there still");
    return [...wrong, ...(await this.#whyNotIn(old))];
  }

  async #whyNotIn(qemu: QemuStandIn | undefined): Promise<string[]> {
    const { bytes } = this.ram;
    const wrong = this.#differs('the VM', qemu?.model.status, 'running');
    // A server that is gone cannot be as it was.
    if (this.tap.hasEnded) return wrong;
    const { state, vmms } = await this.device();
    return [
      ...wrong,
      ...this.#differs('its device', state, 'RUNNING'),
      ...this.#differs('the next VMM', vmms, 'none'),
      ...this.#differs("the device's running", this.served.scratch.running, true),
      ...this.#differs("its device's view", this.viewOf(qemu), this.#view),
      ...this.#differs('the memory', hex(bytes, KEPT_AT, 16), '11'.repeat(16)),
      ...this.#differs('the state', hex(this.served.scratch.state.memory, 0, STATE.length), hex(STATE)),
    ];
  }

  #differs(what: string, found: unknown, wanted: unknown): string[] {
    const [is, was] = [JSON.stringify(found), JSON.stringify(wanted)];
    return is === was ? [] : [`${what} is ${is}, not ${was}`];
  }

  async close(): Promise<void> {
    this.#isOver = true;
    this.time.end();
    this.tap.close();
    await this.newQemu.close();
    await this.#starting;
    await this.next?.close();
    await this.old.close();
    for (const work of this.#cleanup.reverse()) await work();
    // What an error says is left for a program to read.
    for (const name of this.folders) rmSync(join(tmpdir(), name), { recursive: true });
    this.ram.close();
  }
}
