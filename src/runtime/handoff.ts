// SPDX-License-Identifier: Apache-2.0
/**
 * A device of the SDK as it goes to its successor in another process.
 *
 *     giver      begin ─▶ quiesce ─▶ capture ─┬▶ relinquish   the successor has it
 *                                             └▶ resume       it continues here
 *     receiver   rehearse ─▶ adopt ─┬▶ start
 *                                   └▶ relinquish
 */

import { setImmediate as turn } from 'node:timers/promises';
import { packDocument, unpackDocument } from '../documents/index.js';
import { Bundle, REHEARSALS } from '../handoff/index.js';
import { check, native } from '../native/index.js';
import type { CapturedDevice, DmaPeer, HandoffFormat, HandoffPort } from '../server/index.js';
import { closeAll, Fd } from '../transport/index.js';
import { DmaMapFlag, Errno, FormatFlag, IrqSetFlag, RequestError } from '../wire/index.js';
import { openBacking } from './backing.js';
import { DeviceBundle, type HandoffParts } from './device-bundle.js';
import { EventSignal } from './event-signal.js';

/** Largest state that is handed over for practice, bytes. */
const MAX_REHEARSAL = 1024 * 1024;
const PAGE = 4096;

/** The VMM of a rehearsal: asked for nothing, as all memory is mapped. */
const noVmm: DmaPeer = {
  read: () => Promise.reject(new RequestError(Errno.ENOTCONN, 'no VMM is connected')),
  write: () => Promise.reject(new RequestError(Errno.ENOTCONN, 'no VMM is connected')),
};

export class DeviceHandoff implements HandoffPort {
  readonly #parts: HandoffParts;
  readonly #bundle: DeviceBundle;
  #endHold: (() => Promise<void>) | undefined;
  /** Settles when the device has stopped, or will not. */
  #quiescing: Promise<void> | undefined;

  constructor(parts: HandoffParts) {
    this.#parts = parts;
    this.#bundle = new DeviceBundle(parts);
  }

  async practise(format: HandoffFormat): Promise<void> {
    this.#bundle.choose(format, FormatFlag.SAVE);
    await this.#bundle.practiseSave();
  }

  async begin(format: HandoffFormat): Promise<void> {
    const { device } = this.#parts;
    if (device.files === undefined && device.bars.some(({ memory }) => memory !== undefined))
      throw new RequestError(
        Errno.ENOTSUP,
        'the VMM maps memory of this device, which does not hand it over',
      );
    this.#bundle.choose(format, FormatFlag.SAVE);
    this.#endHold = await this.#parts.engine.hold();
  }

  async quiesce(): Promise<void> {
    const { device, interrupts } = this.#parts;
    this.#quiescing = Promise.resolve(device.quiesce());
    await this.#quiescing;
    interrupts.hold();
  }

  capture(): Promise<CapturedDevice> {
    return this.#bundle.capture();
  }

  async resume(): Promise<void> {
    const quiescing = this.#quiescing;
    this.#quiescing = undefined;
    // A device that did not stop runs still.
    const stopped = await quiescing?.then(
      () => true,
      () => false,
    );
    if (stopped === true) await this.#run();
    await this.#release();
  }

  async #run(): Promise<void> {
    const { device, interrupts } = this.#parts;
    await device.resume();
    interrupts.release();
  }

  async #release(): Promise<void> {
    const endHold = this.#endHold;
    this.#endHold = undefined;
    await endHold?.();
  }

  /**
   * The device hands itself over to itself: what it cannot do shows now, and the code has been compiled when a guest
   * waits for it. Left out where the state is large. What is compiled takes its time, and others have their turns between.
   */
  async rehearse(format: HandoffFormat): Promise<void> {
    const { engine, offer } = this.#parts;
    this.#bundle.choose(format, FormatFlag.LOAD);
    this.#endHold = await engine.hold();
    await this.quiesce();
    if (this.#bundle.pending > MAX_REHEARSAL) return;
    // The others too: one day this server hands over in one of them.
    const others = offer.formats.map(({ uuid, version }) => ({ uuid, ...version }));
    for (const one of [...others, format]) await this.#rehearseFormat(one);
  }

  async #rehearseFormat(format: HandoffFormat): Promise<void> {
    const { device } = this.#parts;
    this.#bundle.choose(format, FormatFlag.SAVE | FormatFlag.LOAD);
    const practised = await this.#bundle.practise();
    await turn();
    if (practised) {
      for (let round = 0; round < REHEARSALS; round++) await this.#rehearseOnce();
      await device.reset('aborted');
      await this.quiesce();
    }
    // What no guest has used may run, for the first time: an imagined guest's queues are nowhere.
    for (let round = practised ? 1 : REHEARSALS; round > 0; round--) {
      await this.#rehearseOnce();
      await this.#run();
      await this.quiesce();
    }
  }

  async #rehearseOnce(): Promise<void> {
    const { memory, interrupts } = this.#parts;
    this.#connectNoVmm();
    await turn();
    const { entries, document } = await this.capture();
    const bundle = new Bundle();
    const fds = entries.map(({ fd }) => fd);
    try {
      await turn();
      const packed = packDocument(document);
      await memory.clear();
      bundle.add(entries, fds);
      const unpacked = unpackDocument(packed);
      await turn();
      await this.adopt(bundle, unpacked, noVmm);
    } finally {
      await turn();
      interrupts.disconnect();
      await memory.clear();
      closeAll(fds);
      bundle.close();
    }
  }

  /** Something of all that a VMM has: memory, and an eventfd of each kind of interrupt. */
  #connectNoVmm(): void {
    const { memory, interrupts, files } = this.#parts;
    const fd = new Fd(check(native.memfdCreate('devstate-rehearsal'), 'make a memory file'));
    try {
      const request = { address: 0, size: PAGE, offset: 0, flags: DmaMapFlag.READ | DmaMapFlag.WRITE };
      check(native.truncate(fd.number, PAGE), 'size a memory file');
      memory.add({
        address: 0,
        length: PAGE,
        readable: true,
        writable: true,
        backing: openBacking(request, fd, noVmm, files),
      });
    } finally {
      fd.close();
    }
    const flags = IrqSetFlag.DATA_EVENTFD | IrqSetFlag.ACTION_TRIGGER;
    for (const [index, count] of interrupts.counts.entries()) {
      if (count === 0) continue;
      const signal = new EventSignal(new Fd(check(native.eventfdCreate(0), 'make an eventfd')));
      interrupts.set({ flags, index, start: 0, count: 1 }, new Uint8Array(0), [signal]);
    }
  }

  async adopt(bundle: Bundle, document: unknown, vmm: DmaPeer | undefined): Promise<void> {
    try {
      await this.#bundle.adopt(bundle, document, vmm);
    } catch (error) {
      await this.relinquish();
      throw error;
    }
  }

  async start(): Promise<void> {
    await this.#run();
    await this.#release();
  }

  async relinquish(): Promise<void> {
    const { device, memory, interrupts } = this.#parts;
    interrupts.disconnect();
    device.files?.relinquish();
    await memory.clear();
  }
}
