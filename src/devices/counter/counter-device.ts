// SPDX-License-Identifier: Apache-2.0
/**
 * A counter whose commands are not idempotent, for tests that need to know whether a command takes effect once: registers
 * that add and compare-and-swap, and a ring of such commands in guest memory with completions and an interrupt.
 *
 *     BAR 0   registers.ts
 *     BAR 2   MSI-X table and pending bits
 *
 * The counter itself survives a reset, like memory that is not volatile; registers and rings do not.
 */

import {
  type Bar,
  type Device,
  type DeviceHost,
  type DeviceJournal,
  msixCapability,
  PciConfigSpace,
  type ResetReason,
} from '../../device/index.js';
import {
  COMPLETION_VECTOR,
  CounterOpcode,
  CounterRegister,
  CounterStatus,
  IDENTITY,
  REGISTERS_SIZE,
} from './registers.js';
import { CounterRing } from './ring.js';
import {
  type CounterState,
  counted,
  decodeState,
  encodeState,
  initialState,
  MAX_ENTRIES,
  STATE_LENGTH,
} from './state.js';
import { CounterStateFormat } from './state-format.js';

const REGISTER_BAR = 0;
const MSIX_BAR = 2;
const MSIX_TABLE_SIZE = 4096;
const PBA_OFFSET = 2048;
const VECTORS = 1;

const bars: readonly Bar[] = [
  { index: REGISTER_BAR, size: REGISTERS_SIZE, kind: 'memory32' },
  { index: MSIX_BAR, size: MSIX_TABLE_SIZE, kind: 'memory32' },
];

const identity = {
  vendorId: 0x494f,
  deviceId: 0x0c47,
  subsystemVendorId: 0x494f,
  subsystemId: 0x0c47,
  revision: 1,
  classCode: 0xff0000,
  intx: false,
};

export class CounterDevice implements Device {
  readonly model = { uri: 'devstate.org/counter', parameters: {} };
  readonly producer = { name: 'devstate/counter', version: '1.0' };
  readonly config = new PciConfigSpace(identity, bars, [
    msixCapability({
      vectors: VECTORS,
      tableBar: MSIX_BAR,
      tableOffset: 0,
      pbaBar: MSIX_BAR,
      pbaOffset: PBA_OFFSET,
    }),
  ]);
  readonly bars = bars;
  readonly interruptCounts = { intx: false, msi: 0, msix: VECTORS } as const;
  readonly formats = [new CounterStateFormat(this)];
  readonly journal: DeviceJournal;

  #state = initialState();
  readonly #image = new Uint8Array(REGISTERS_SIZE);
  readonly #view = new DataView(this.#image.buffer);
  #host: DeviceHost | undefined;
  #ring: CounterRing | undefined;

  constructor() {
    const record = new Uint8Array(STATE_LENGTH);
    this.journal = {
      records: [{ name: 'state', capacity: STATE_LENGTH }],
      // Cheaper to write than to know whether it has changed.
      save: (put) => put(0, encodeState(this.#state, record)),
      restore: (get) => {
        const kept = get(0);
        if (kept !== undefined) this.#become(decodeState(kept));
      },
    };
  }

  attach(host: DeviceHost): void {
    this.#host = host;
    this.#ring = new CounterRing(host, {
      state: () => this.#state,
      execute: (opcode, operand, expected) => this.#execute(opcode, operand, expected),
    });
  }

  readRegion(region: number, offset: number, target: Uint8Array): void {
    if (region !== REGISTER_BAR) {
      target.fill(0);
      return;
    }
    this.#show();
    target.set(this.#image.subarray(offset, offset + target.length));
  }

  /** Brings the image that is read from up to date. */
  #show(): void {
    const { value, additions, exchanges, expected, desired, result, entries, commands, completions, head } =
      this.#state;
    const view = this.#view;
    view.setUint32(CounterRegister.IDENTITY, IDENTITY, true);
    view.setBigUint64(CounterRegister.VALUE, value, true);
    view.setBigUint64(CounterRegister.ADDITIONS, BigInt(additions), true);
    view.setBigUint64(CounterRegister.EXCHANGES, BigInt(exchanges), true);
    view.setBigUint64(CounterRegister.CAS_EXPECTED, expected, true);
    view.setBigUint64(CounterRegister.CAS_DESIRED, desired, true);
    view.setUint32(CounterRegister.CAS, result, true);
    view.setBigUint64(CounterRegister.COMMANDS, BigInt(commands), true);
    view.setBigUint64(CounterRegister.COMPLETIONS, BigInt(completions), true);
    view.setUint32(CounterRegister.ENTRIES, entries, true);
    view.setUint32(CounterRegister.HEAD, head, true);
  }

  /** Dwords, and the two halves of a quadword in any order; anything else is ignored. */
  writeRegion(region: number, offset: number, data: Uint8Array): void {
    if (region !== REGISTER_BAR || offset % 4 !== 0 || data.length % 4 !== 0) return;
    const view = new DataView(data.buffer, data.byteOffset, data.length);
    for (let at = 0; at < data.length; at += 4) this.#writeDword(offset + at, view.getUint32(at, true));
  }

  #writeDword(register: number, value: number): void {
    const state = this.#state;
    switch (register) {
      case CounterRegister.ADD:
        this.#execute(CounterOpcode.ADD, BigInt(value), 0n);
        return;
      case CounterRegister.CAS: {
        const status = this.#execute(CounterOpcode.COMPARE_AND_SWAP, state.desired, state.expected);
        state.result = status === CounterStatus.DONE ? 1 : 0;
        return;
      }
      case CounterRegister.ENTRIES:
        state.entries = value >= 2 && value <= MAX_ENTRIES ? value : 0;
        Object.assign(state, { head: 0, tail: 0, phase: 1 });
        return;
      case CounterRegister.TAIL:
        if (value >= state.entries) return;
        state.tail = value;
        this.#ring?.serve();
        return;
      default:
        this.#writeHalf(register, value);
    }
  }

  #writeHalf(register: number, value: number): void {
    const state = this.#state;
    const high = register % 8 === 4;
    const half = (old: bigint): bigint =>
      high ? (old & 0xffffffffn) | (BigInt(value) << 32n) : (old & ~0xffffffffn) | BigInt(value);
    const address = (old: number): number => {
      const made = Number(half(BigInt(old)));
      return Number.isSafeInteger(made) && state.entries === 0 ? made : old;
    };
    switch (register - (register % 8)) {
      case CounterRegister.CAS_EXPECTED:
        state.expected = half(state.expected);
        return;
      case CounterRegister.CAS_DESIRED:
        state.desired = half(state.desired);
        return;
      case CounterRegister.COMMANDS:
        state.commands = address(state.commands);
        return;
      case CounterRegister.COMPLETIONS:
        state.completions = address(state.completions);
        return;
      default:
      // Read-only, or not there.
    }
  }

  /** @returns `CounterStatus` */
  #execute(opcode: number, operand: bigint, expected: bigint): number {
    const state = this.#state;
    if (opcode === CounterOpcode.ADD) {
      state.value = BigInt.asUintN(64, state.value + operand);
      state.additions = counted(state.additions);
      return CounterStatus.DONE;
    }
    if (opcode !== CounterOpcode.COMPARE_AND_SWAP) return CounterStatus.INVALID;
    if (state.value !== expected) return CounterStatus.DIFFERENT;
    state.value = operand;
    state.exchanges = counted(state.exchanges);
    return CounterStatus.DONE;
  }

  reset(reason: ResetReason): void {
    const { value, additions, exchanges } = this.#state;
    this.#ring?.stop();
    // A counter that was loaded for a VM that did not come is another device's.
    this.#become({ ...initialState(), ...(reason === 'aborted' ? {} : { value, additions, exchanges }) });
    this.config.reset();
    this.#ring?.start();
  }

  quiesce(): void {
    this.#ring?.stop();
  }

  resume(): void {
    this.#ring?.start();
    if (!this.#state.interrupt) return;
    this.#state.interrupt = false;
    this.#host?.interrupts.triggerMsix(COMPLETION_VECTOR);
  }

  #become(state: CounterState): void {
    this.#state = state;
  }

  captureState(): CounterState {
    const { pendingMsix = [] } = this.#host?.interrupts.save() ?? {};
    return { ...this.#state, interrupt: pendingMsix.includes(COMPLETION_VECTOR) };
  }

  /** @throws RequestError EINVAL, unchanged, for another's config space */
  restoreState(state: CounterState, config: Uint8Array): void {
    this.config.load(config);
    this.#become(state);
  }
}
