// SPDX-License-Identifier: Apache-2.0
/** What the records of format `org.devstate.nvme.birch` hold, for people: fields by name. */

import { type FieldMap, type FormatDescription, NVME_BIRCH } from '../../../formats/index.js';
import { AdminOpcode, Dword, IoOpcode, pendingVectors, Register } from '../spec/index.js';
import { ControllerImage } from './controller-image.js';
import { readErrors } from './health.js';
import { hex, readIdentity, readText, STRUCTURE_SIZES } from './identity.js';
import {
  COALESCING_DISABLED_AT,
  COMMAND_SIZE,
  COMMANDS_AT,
  COMPLETION_AT,
  CONFIG_AT,
  CONFIG_SIZE,
  CONTROLLER_AT,
  CommandSlot,
  CommandState,
  CompletionSlot,
  EVENT_SIZE,
  EVENT_SLOTS,
  Events,
  FEATURE_WORDS,
  Header,
  HealthCounter,
  IMAGE_SIZE,
  MAGIC,
  OVER_TEMPERATURE_AT,
  PENDING_BITS_AT,
  PENDING_BITS_SIZE,
  QUEUE_SIZE,
  QueueSlot,
  REGISTERS_AT,
  SUBMISSION_AT,
  SubmissionSlot,
  UNDER_TEMPERATURE_AT,
  VECTOR_BITMAP_SIZE,
  VECTOR_SIZE,
  VECTORS_AT,
} from './layout.js';
import { BirchRecord, birchRecordName } from './records.js';

/** Slots shown of a section; the rest are counted. */
const SHOWN_SLOTS = 256;

export const birchDescription: FormatDescription = {
  uuid: NVME_BIRCH.uuid,
  recordName: birchRecordName,
  describe: (type, payload) => describers.get(type)?.(payload),
};

const describers = new Map<number, (payload: Uint8Array) => FieldMap>([
  [BirchRecord.HEADER, (payload) => header(imageWith(payload, 0))],
  [BirchRecord.CONTROLLER, (payload) => controller(imageWith(payload, CONTROLLER_AT))],
  [BirchRecord.INTERRUPT_VECTORS, (payload) => slots('vectors', payload, VECTORS_AT, VECTOR_SIZE, vector)],
  [
    BirchRecord.SUBMISSION_QUEUES,
    (payload) => slots('queues', payload, SUBMISSION_AT, QUEUE_SIZE, submissionQueue),
  ],
  [
    BirchRecord.COMPLETION_QUEUES,
    (payload) => slots('queues', payload, COMPLETION_AT, QUEUE_SIZE, completionQueue),
  ],
  [BirchRecord.COMMANDS, (payload) => slots('commands', payload, COMMANDS_AT, COMMAND_SIZE, command)],
]);

/** An image with a payload in its place, as far as there is room for it. */
function imageWith(payload: Uint8Array, at: number): ControllerImage {
  const image = new ControllerImage();
  image.bytes.set(payload.subarray(0, IMAGE_SIZE - at), at);
  return image;
}

function header(image: ControllerImage): FieldMap {
  const { parameters, controllerId, nguid, eui64 } = readIdentity(image);
  return {
    magic: readText(image, Header.MAGIC, MAGIC.length),
    layout_version: image.u32(Header.LAYOUT_VERSION),
    structure_sizes: Object.fromEntries(
      STRUCTURE_SIZES.map(({ name, at }) => [name.replace(' ', '_'), image.u32(at)]),
    ),
    counts: {
      interrupt_vectors: image.u32(Header.VECTOR_COUNT),
      submission_queues: image.u32(Header.SUBMISSION_COUNT),
      completion_queues: image.u32(Header.COMPLETION_COUNT),
      commands: image.u32(Header.COMMAND_COUNT),
    },
    parameters: { ...parameters, namespace_size: counter(parameters.namespace_size) },
    controller_id: controllerId,
    nguid: hex(nguid),
    eui64: hex(eui64),
  };
}

function controller(image: ControllerImage): FieldMap {
  const errors = readErrors(image).map(({ count, sqid, cid, status, lba, nsid }) => ({
    count: counter(count),
    submission_queue: sqid,
    command_id: cid,
    status: hexNumber(status),
    lba: counter(lba),
    namespace: nsid,
  }));
  return {
    registers: {
      cc: hexNumber(image.register(Register.CC)),
      csts: hexNumber(image.register(Register.CSTS)),
      interrupt_mask: hexNumber(image.register(Register.INTMS)),
      aqa: hexNumber(image.register(Register.AQA)),
      asq: hexNumber(image.u64(REGISTERS_AT + Register.ASQ)),
      acq: hexNumber(image.u64(REGISTERS_AT + Register.ACQ)),
    },
    features: {
      ...Object.fromEntries(FEATURE_WORDS.map(({ name, at }) => [name, image.u32(at)])),
      over_temperature_threshold: image.u32(OVER_TEMPERATURE_AT),
      under_temperature_threshold: image.u32(UNDER_TEMPERATURE_AT),
      coalescing_disabled: pendingVectors(image.span(COALESCING_DISABLED_AT, VECTOR_BITMAP_SIZE)),
    },
    events: { pending: pendingEvents(image), masked_types: hexNumber(image.u8(Events.MASKED)) },
    health: Object.fromEntries(
      Object.entries(HealthCounter).map(([name, at]) => [name.toLowerCase(), counter(image.u64(at))]),
    ),
    error_log: errors,
    pci_config: hex(image.span(CONFIG_AT, CONFIG_SIZE)),
    pending_vectors: pendingVectors(image.span(PENDING_BITS_AT, PENDING_BITS_SIZE)),
  };
}

function pendingEvents(image: ControllerImage): FieldMap[] {
  const count = Math.min(image.u8(Events.COUNT), EVENT_SLOTS);
  return Array.from({ length: count }, (_, index) => {
    const at = Events.SLOTS + index * EVENT_SIZE;
    return { type: image.u8(at), information: image.u8(at + 1), log_page: image.u8(at + 2) };
  });
}

/** The slots of a section, each as fields. */
function slots(
  name: string,
  payload: Uint8Array,
  at: number,
  size: number,
  describe: (image: ControllerImage, at: number) => FieldMap,
): FieldMap {
  const count = Math.floor(payload.length / size);
  const shown = Math.min(count, SHOWN_SLOTS);
  const image = imageWith(payload.subarray(0, shown * size), at);
  const fields = Array.from({ length: shown }, (_, index) => describe(image, at + index * size));
  return count === shown ? { [name]: fields } : { [name]: fields, [`${name}_not_shown`]: count - shown };
}

function vector(image: ControllerImage, at: number): FieldMap {
  return {
    address: hexNumber(image.u64(at)),
    data: hexNumber(image.u32(at + 8)),
    masked: (image.u32(at + 12) & 1) !== 0,
  };
}

function queue(image: ControllerImage, at: number): FieldMap {
  return {
    id: image.u16(at + QueueSlot.ID),
    base: hexNumber(image.u64(at + QueueSlot.BASE)),
    entries: image.u32(at + QueueSlot.ENTRIES),
    head: image.u32(at + QueueSlot.HEAD),
    tail: image.u32(at + QueueSlot.TAIL),
  };
}

function submissionQueue(image: ControllerImage, at: number): FieldMap {
  return {
    ...queue(image, at),
    completion_queue: image.u16(at + SubmissionSlot.CQID),
    priority: image.u8(at + SubmissionSlot.PRIORITY),
  };
}

function completionQueue(image: ControllerImage, at: number): FieldMap {
  return {
    ...queue(image, at),
    phase: image.u8(at + CompletionSlot.PHASE),
    vector: image.u16(at + CompletionSlot.VECTOR),
    interrupts: image.u8(at + CompletionSlot.INTERRUPTS) !== 0,
  };
}

const stateNames = new Map<number, string>(
  Object.entries(CommandState).map(([name, state]) => [state, name.toLowerCase()]),
);
const adminNames = opcodeNames(AdminOpcode);
const ioNames = opcodeNames(IoOpcode);

function opcodeNames(opcodes: Record<string, number>): ReadonlyMap<number, string> {
  return new Map(Object.entries(opcodes).map(([name, opcode]) => [opcode, name.toLowerCase()]));
}

function command(image: ControllerImage, at: number): FieldMap {
  const state = image.u8(at + CommandSlot.STATE);
  const sqid = image.u16(at + CommandSlot.SQID);
  const entry = at + CommandSlot.ENTRY;
  const opcode = image.u8(entry);
  const common = {
    state: stateNames.get(state) ?? state,
    submission_queue: sqid,
    command_id: image.u16(entry + 2),
  };
  if (state === CommandState.DUE) {
    const status = hexNumber(image.u16(at + CommandSlot.STATUS));
    return { ...common, status, result: image.u32(at + CommandSlot.RESULT) };
  }
  return {
    ...common,
    opcode: (sqid === 0 ? adminNames : ioNames).get(opcode) ?? opcode,
    namespace: image.u32(entry + 4 * Dword.NSID),
    entry: hex(image.span(entry, 64)),
  };
}

/** A counter; one that no number holds exactly is shown as hexadecimal text. */
function counter(value: number): number | string {
  return Number.isSafeInteger(value) ? value : hexNumber(value);
}

function hexNumber(value: number): string {
  return `0x${value.toString(16)}`;
}
