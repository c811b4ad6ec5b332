// SPDX-License-Identifier: Apache-2.0
/**
 * A device of the SDK in a crash journal: what a VMM has given it, its config space, its own records. Each is put at the
 * end of a transaction in which it changed, and costs nothing in one in which it did not.
 */

import { CONFIG_SPACE_SIZE, type Device, type DeviceFileKind, type DeviceJournal } from '../device/index.js';
import type { Effector, SlotSpec } from '../journal/index.js';
import { native } from '../native/index.js';
import {
  type CrashJournal,
  MAX_NOTE_LENGTH,
  type ManagementPort,
  type RecoveryPort,
} from '../server/index.js';
import { closeAll, type Fd } from '../transport/index.js';
import { DmaMapFlag, Errno, MigrationState, RequestError } from '../wire/index.js';
import * as z from '../zod.js';
import { openBacking } from './backing.js';
import { frozenInterrupts } from './device-bundle.js';
import { bundleEntry, bundleKind } from './device-files.js';
import type { DmaTable } from './dma-table.js';
import { writeOrdered } from './host-journal.js';
import { KeptSignal } from './kept-signal.js';
import type { MigrationEngine } from './migration-engine.js';
import type { SharedFiles } from './shared-files.js';
import type { VmmTables } from './vmm-tables.js';

const SLOTS = {
  dma: { name: 'sdk:dma', capacity: 512 * 1024 },
  interrupts: { name: 'sdk:interrupts', capacity: 128 * 1024 },
  config: { name: 'sdk:config', capacity: CONFIG_SPACE_SIZE },
  life: { name: 'sdk:life', capacity: 256 },
  files: { name: 'sdk:files', capacity: 4096 },
  note: { name: 'sdk:note', capacity: MAX_NOTE_LENGTH },
} as const satisfies Record<string, SlotSpec>;
type SdkSlot = keyof typeof SLOTS;

/** Before the names of a device's own records. */
const OWN = 'device:';

const unsigned = z.number().int().nonnegative();
const dmaSchema = z.array(
  z.object({
    address: unsigned,
    size: unsigned,
    offset: unsigned,
    flags: unsigned,
    file: unsigned.nullable(),
  }),
);
const interruptsSchema = z.object({ state: frozenInterrupts, numbers: z.array(z.array(unsigned)) });
const lifeSchema = z.object({ state: z.enum(MigrationState), arrived: z.boolean(), handedOver: z.boolean() });
const filesSchema = z.object({
  files: z.array(z.object({ name: z.string(), kind: unsigned, number: unsigned })),
  data: z.unknown(),
});

/** The records that a journal must have for a device. */
export function journalSlots(journal: DeviceJournal): SlotSpec[] {
  const own = journal.records.map(({ name, capacity }) => ({ name: `${OWN}${name}`, capacity }));
  return [...Object.values(SLOTS), ...own];
}

export interface CrashRecordParts {
  readonly device: Device;
  readonly journal: DeviceJournal;
  readonly crash: CrashJournal;
  readonly tables: VmmTables;
  readonly engine: MigrationEngine;
  readonly files: SharedFiles;
  readonly management: ManagementPort;
}

export class CrashRecords implements RecoveryPort {
  readonly #parts: CrashRecordParts;
  readonly #slots: Record<SdkSlot, number>;
  readonly #own: readonly number[];
  readonly #put: (record: number, bytes: Uint8Array) => void;
  #memoryGeneration = -1;
  #filesGeneration: number | undefined;
  /** The device's own, once they are kept. */
  #files: z.infer<typeof filesSchema>['files'] | undefined;
  #life = '';
  #note: Uint8Array;
  /** The config space was written, or reset. */
  #configChanged = true;
  #recovering: boolean;

  constructor(parts: CrashRecordParts) {
    this.#parts = parts;
    const { crash, journal, engine } = parts;
    const slot = (name: string): number => crash.journal.slot(name);
    this.#slots = Object.fromEntries(
      Object.entries(SLOTS).map(([key, { name }]) => [key, slot(name)]),
    ) as Record<SdkSlot, number>;
    this.#own = journal.records.map(({ name }) => slot(`${OWN}${name}`));
    this.#put = (record, bytes) => crash.journal.put(this.#own[record]!, bytes);
    this.#recovering = crash.recovered;
    this.#note = parts.management.note;
    crash.transactions.effector = effectorOf(parts);
    crash.transactions.keep(() => this.#keep());
    engine.onSettled = () => crash.transactions.run(() => this.configChanged());
    if (!crash.recovered) crash.transactions.run(() => this.#keepFiles());
  }

  /** The config space may be another than at the last commit. */
  configChanged(): void {
    this.#configChanged = true;
  }

  /** A manager has left a note, by a connection that no transaction is about. */
  noteChanged(): void {
    if (!this.#recovering) this.#parts.crash.transactions.run(() => {});
  }

  #keep(): void {
    const { device, journal, crash, tables, engine, management } = this.#parts;
    // What is being recovered is there already.
    if (this.#recovering) return;
    const { memory, interrupts } = tables;
    if (memory.generation !== this.#memoryGeneration) {
      this.#memoryGeneration = memory.generation;
      this.#putJson('dma', this.#ranges(memory));
    }
    if (interrupts.takeChanged()) {
      const { state, signals } = interrupts.state;
      const numbers = signals.map((ofKind) => ofKind.map((signal) => (signal as KeptSignal).number));
      this.#putJson('interrupts', { state, numbers });
    }
    if (device.files?.generation !== this.#filesGeneration) this.#keepFiles();
    if (this.#configChanged) {
      this.#configChanged = false;
      crash.journal.put(this.#slots.config, device.config.bytes);
    }
    if (management.note !== this.#note) {
      this.#note = management.note;
      crash.journal.put(this.#slots.note, this.#note);
    }
    const life = JSON.stringify(engine.life);
    if (life !== this.#life) {
      this.#life = life;
      crash.journal.put(this.#slots.life, Buffer.from(life));
    }
    journal.save(this.#put);
  }

  #putJson(slot: SdkSlot, value: unknown): void {
    this.#parts.crash.journal.put(this.#slots[slot], Buffer.from(JSON.stringify(value)));
  }

  #ranges(memory: DmaTable): z.infer<typeof dmaSchema> {
    return memory.regions.map(({ address, length, backing }) => {
      const { file, offset, flags } = backing.origin ?? { file: undefined, offset: 0, flags: 0 };
      const number = file === undefined ? undefined : this.#parts.files.numberOf(file);
      return { address, size: length, offset, flags, file: number ?? null };
    });
  }

  #keepFiles(): void {
    const { device, crash } = this.#parts;
    const own = device.files?.exportFiles();
    if (own === undefined) return;
    this.#filesGeneration = device.files?.generation;
    try {
      this.#files ??= own.files
        .map(bundleEntry)
        .map(({ name, kind, fd }) => ({ name, kind, number: crash.store.put(fd) }));
      this.#putJson('files', { files: this.#files, data: own.data });
    } finally {
      closeAll(own.files.map(({ fd }) => fd));
    }
  }

  #read<Schema extends z.ZodType>(slot: SdkSlot, schema: Schema): z.infer<Schema> | undefined {
    const bytes = this.#parts.crash.journal.get(this.#slots[slot]);
    return bytes === undefined ? undefined : schema.parse(JSON.parse(Buffer.from(bytes).toString()));
  }

  recover(): void {
    const { device, journal, crash, engine, management } = this.#parts;
    management.note = crash.journal.get(this.#slots.note)?.slice() ?? new Uint8Array(0);
    this.#note = management.note;
    this.#recoverFiles();
    this.#recoverMemory();
    this.#recoverInterrupts();
    const config = crash.journal.get(this.#slots.config);
    if (config !== undefined) device.config.load(config);
    journal.restore((record) => crash.journal.get(this.#own[record]!)?.slice());
    this.#life = JSON.stringify(engine.life);
  }

  #recoverFiles(): void {
    const { device, crash } = this.#parts;
    const kept = this.#read('files', filesSchema);
    if (kept === undefined) return;
    const take = (name: string, kind: DeviceFileKind): Fd => {
      const file = kept.files.find((one) => one.name === name && one.kind === bundleKind(kind));
      if (file === undefined) throw new RequestError(Errno.ENOENT, `the file ${name} was not kept`);
      return crash.store.take(file.number);
    };
    device.files?.importFiles(take, kept.data);
    this.#files = kept.files;
    this.#filesGeneration = device.files?.generation;
  }

  #recoverMemory(): void {
    const { tables, crash, files } = this.#parts;
    for (const { file, ...request } of this.#read('dma', dmaSchema) ?? []) {
      const { address, size, flags } = request;
      tables.memory.add({
        address,
        length: size,
        readable: (flags & DmaMapFlag.READ) !== 0,
        writable: (flags & DmaMapFlag.WRITE) !== 0,
        backing: openBacking(
          request,
          file === null ? undefined : crash.store.fdOf(file),
          tables.requirePeer(),
          files,
        ),
      });
    }
    this.#memoryGeneration = tables.memory.generation;
  }

  #recoverInterrupts(): void {
    const { tables, crash } = this.#parts;
    const kept = this.#read('interrupts', interruptsSchema);
    if (kept === undefined) return;
    const signals = kept.numbers.map((ofKind) =>
      ofKind.map((number) => new KeptSignal(crash.store.reuse(number), crash.transactions)),
    );
    tables.interrupts.thaw(kept.state, signals);
  }

  async start(): Promise<void> {
    const life = this.#read('life', lifeSchema) ?? this.#parts.engine.life;
    this.#recovering = false;
    await this.#parts.engine.recover(life);
  }
}

/** What a transaction sets off, at once. */
function effectorOf({ crash, tables }: Pick<CrashRecordParts, 'crash' | 'tables'>): Effector {
  return {
    signal: (number) => {
      const fd = crash.store.fdOf(number);
      if (fd !== undefined) native.eventfdSignal(fd.number);
    },
    write: (address, bytes) => writeOrdered(tables.memory, address, bytes),
  };
}
