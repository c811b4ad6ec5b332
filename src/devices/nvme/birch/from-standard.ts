// SPDX-License-Identifier: Apache-2.0
/**
 * The vendor-neutral `NvmeState` as an image. By values alone: no controller is needed. What another vendor's controller
 * has and this one cannot have is refused, all of it by name.
 */

import { PciRegister, PciStatus, type StateRecord } from '../../../device/index.js';
import type {
  NvmeCompletionQueue,
  NvmeEvents,
  NvmeFeature,
  NvmeHealth,
  NvmeIdentity,
  NvmeRegisters,
  NvmeState,
  NvmeSubmissionQueue,
  PciFunctionState,
} from '../../../formats/index.js';
import {
  AdminOpcode,
  Cc,
  Csts,
  FeatureId,
  NSID,
  type NvmeParameters,
  Register,
  resolveNvmeParameters,
  SQ_ENTRY_SIZE,
} from '../spec/index.js';
import {
  ControllerImage,
  commandAt,
  completionAt,
  resetFeatures,
  resetRegisters,
  submissionAt,
} from './controller-image.js';
import { FeatureBit, queueCount, setCoalescingDisabled } from './features.js';
import { writeHeader } from './identity.js';
import { ImageFiller } from './image-filler.js';
import {
  COMMAND_SLOTS,
  CONFIG_AT,
  CONFIG_SIZE,
  CommandSlot,
  CommandState,
  CompletionSlot,
  ERROR_SIZE,
  ERROR_SLOTS,
  ERRORS_AT,
  ErrorSlot,
  EUI64_LENGTH,
  EVENT_SIZE,
  EVENT_SLOTS,
  Events,
  FEATURE_WORDS,
  HealthCounter,
  NGUID_LENGTH,
  OVER_TEMPERATURE_AT,
  PENDING_BITS_AT,
  PENDING_BITS_SIZE,
  QUEUE_SLOTS,
  QueueSlot,
  QueueState,
  REGISTERS_AT,
  SubmissionSlot,
  UNDER_TEMPERATURE_AT,
  VECTOR_SIZE,
  VECTORS_AT,
} from './layout.js';
import { imageToRecords } from './records.js';
import { refused } from './refused.js';
import { imageProblem } from './validate.js';

/** A state as the records of format `org.devstate.nvme.birch`. @throws RequestError EINVAL with every reason why it cannot be */
export function standardToBirch(state: NvmeState): StateRecord[] {
  return imageToRecords(standardToImage(state));
}

/** A state as a sound image, made in `image`, which is empty. @throws RequestError EINVAL with every reason why it cannot be */
export function standardToImage(state: NvmeState, image = new ControllerImage()): ControllerImage {
  const filler = new ImageFiller(image);
  // What the rest is measured by, so the rest is not looked at if it is wrong.
  const parameters = fillIdentity(filler, state.identity);
  filler.finish();
  fillPci(filler, state.pci, parameters);
  fillRegisters(filler, state.registers, parameters);
  fillQueues(filler, state);
  fillCommands(filler, state);
  fillFeatures(filler, state.features, parameters);
  fillEvents(filler, state.events);
  fillHealth(filler, state.health);
  filler.finish();
  const problem = imageProblem(image);
  if (problem !== undefined) throw refused(problem);
  return image;
}

function fillIdentity(filler: ImageFiller, identity: NvmeIdentity): NvmeParameters {
  const [namespace] = identity.namespaces;
  if (namespace === undefined || identity.namespaces.length > 1 || namespace.id !== NSID) {
    const ids = identity.namespaces.map(({ id }) => id).join(', ');
    throw refused(`it has the namespaces [${ids}], this controller has [${NSID}]`);
  }
  const parameters = {
    queues: identity.queues,
    msix_vectors: identity.msixVectors,
    queue_entries: identity.queueEntries,
    mdts: identity.mdts,
    lba_size: namespace.lbaSize,
    namespace_size: namespace.size,
    serial: identity.serial,
    model_number: identity.modelNumber,
    firmware: identity.firmware,
  };
  for (const [name, value] of Object.entries(parameters)) {
    try {
      resolveNvmeParameters({ [name]: value }, namespace.size);
    } catch (error) {
      filler.refuse(error instanceof Error ? error.message : String(error));
    }
  }
  const { nguid, eui64 } = namespace;
  if (nguid.length !== NGUID_LENGTH || eui64.length !== EUI64_LENGTH) {
    filler.refuse(`identifiers of namespace ${NSID} of ${nguid.length} and ${eui64.length} bytes`);
  }
  filler.finish();
  writeHeader(filler.image, { controllerId: identity.controllerId, parameters, nguid, eui64 });
  return parameters;
}

function fillPci(filler: ImageFiller, pci: PciFunctionState, parameters: NvmeParameters): void {
  const { image } = filler;
  filler.bytes('the config space', CONFIG_AT, pci.config, CONFIG_SIZE);
  if (pci.config.length < CONFIG_SIZE) filler.refuse(`a config space of ${pci.config.length} bytes`);
  // Follows from the queues.
  const status = CONFIG_AT + PciRegister.STATUS;
  image.setU8(status, image.u8(status) & ~PciStatus.INTERRUPT);
  const tableSize = parameters.msix_vectors * VECTOR_SIZE;
  if (pci.msixTable.length !== tableSize) {
    filler.refuse(`an MSI-X table of ${pci.msixTable.length} bytes instead of ${tableSize}`);
  } else image.bytes.set(pci.msixTable, VECTORS_AT);
  filler.bytes('MSI-X pending bits', PENDING_BITS_AT, pci.msixPending, PENDING_BITS_SIZE);
}

function fillRegisters(filler: ImageFiller, registers: NvmeRegisters, parameters: NvmeParameters): void {
  const at = (offset: number) => REGISTERS_AT + offset;
  resetRegisters(filler.image, parameters);
  filler.u32('CC', at(Register.CC), registers.cc);
  filler.u32('CSTS', at(Register.CSTS), shutdownAnew(registers));
  filler.u32('INTMS', at(Register.INTMS), registers.interruptMask);
  filler.u32('INTMC', at(Register.INTMC), registers.interruptMask);
  filler.u32('AQA', at(Register.AQA), registers.aqa);
  filler.u64('ASQ', at(Register.ASQ), registers.asq);
  filler.u64('ACQ', at(Register.ACQ), registers.acq);
}

/** A shutdown that CC asks for and that is under way begins again where the state is loaded: CSTS as before it. */
function shutdownAnew({ cc, csts }: NvmeRegisters): number {
  const occurring = (csts & Csts.SHST_MASK) === Csts.SHST_OCCURRING && (cc & Cc.SHN_MASK) !== 0;
  return occurring ? csts - Csts.SHST_OCCURRING : csts;
}

function fillQueues(filler: ImageFiller, state: NvmeState): void {
  for (const queue of state.submissionQueues) {
    const name = `submission queue ${queue.id}`;
    const at = fillQueue(filler, name, queue, submissionAt);
    if (at === undefined) continue;
    filler.u16(`the completion queue of ${name}`, at + SubmissionSlot.CQID, queue.completionQueue);
    filler.u8(`the priority of ${name}`, at + SubmissionSlot.PRIORITY, queue.priority);
  }
  for (const queue of state.completionQueues) {
    const name = `completion queue ${queue.id}`;
    const at = fillQueue(filler, name, queue, completionAt);
    if (at === undefined) continue;
    filler.u8(`the phase of ${name}`, at + CompletionSlot.PHASE, queue.phase);
    filler.u16(`the vector of ${name}`, at + CompletionSlot.VECTOR, queue.vector);
    filler.u8(`the interrupts of ${name}`, at + CompletionSlot.INTERRUPTS, queue.interruptsEnabled ? 1 : 0);
  }
}

/** Fills what both kinds of queue have in common. @returns the queue's slot, if there is one for it */
function fillQueue(
  filler: ImageFiller,
  name: string,
  queue: NvmeSubmissionQueue | NvmeCompletionQueue,
  slotAt: (id: number) => number,
): number | undefined {
  const { image } = filler;
  if (!Number.isInteger(queue.id) || queue.id < 0 || queue.id >= QUEUE_SLOTS) {
    filler.refuse(`${name} does not exist here`);
    return undefined;
  }
  const at = slotAt(queue.id);
  if (image.u8(at + QueueSlot.STATE) !== QueueState.ABSENT) filler.refuse(`${name} is there twice`);
  if (!queue.physicallyContiguous) {
    filler.refuse(`${name} is not physically contiguous, as this controller needs it (CAP.CQR)`);
  }
  image.setU8(at + QueueSlot.STATE, QueueState.PRESENT);
  image.setU16(at + QueueSlot.ID, queue.id);
  filler.u64(`the base of ${name}`, at + QueueSlot.BASE, queue.base);
  filler.u32(`the size of ${name}`, at + QueueSlot.ENTRIES, queue.entries);
  filler.u32(`the head of ${name}`, at + QueueSlot.HEAD, queue.head);
  filler.u32(`the tail of ${name}`, at + QueueSlot.TAIL, queue.tail);
  return at;
}

/** Event requests, completions that are due, commands to carry out: each one slot. */
function fillCommands(filler: ImageFiller, state: NvmeState): void {
  const { image } = filler;
  const { completions, commands } = state;
  const { requests } = state.events;
  const total = requests.length + completions.length + commands.length;
  if (total > COMMAND_SLOTS) {
    filler.refuse(`${total} commands and completions, more than the ${COMMAND_SLOTS} there is room for`);
    return;
  }
  let slot = 0;
  const begin = (commandState: number, sqid: number): number => {
    const at = commandAt(slot);
    image.setCommandState(slot, commandState);
    filler.u16('the submission queue of a command', at + CommandSlot.SQID, sqid);
    image.view.setFloat64(at + CommandSlot.ORDER, slot++, true);
    return at;
  };
  for (const cid of requests) {
    const at = begin(CommandState.WAITING, 0);
    image.setU8(at + CommandSlot.ENTRY, AdminOpcode.ASYNC_EVENT_REQUEST);
    filler.u16('the identifier of an event request', at + CommandSlot.ENTRY + 2, cid);
  }
  for (const { submissionQueue, commandId, status, result } of completions) {
    const at = begin(CommandState.DUE, submissionQueue);
    filler.u16('the identifier of a completion', at + CommandSlot.ENTRY + 2, commandId);
    filler.u16('the status of a completion', at + CommandSlot.STATUS, status);
    filler.u32('the result of a completion', at + CommandSlot.RESULT, result);
  }
  for (const { submissionQueue, entry } of commands) {
    const at = begin(CommandState.FETCHED, submissionQueue);
    if (entry.length === SQ_ENTRY_SIZE) image.bytes.set(entry, at + CommandSlot.ENTRY);
    else filler.refuse(`a command of ${entry.length} bytes instead of ${SQ_ENTRY_SIZE}`);
  }
}

/** What is not there keeps its default. */
function fillFeatures(
  filler: ImageFiller,
  features: readonly NvmeFeature[],
  parameters: NvmeParameters,
): void {
  resetFeatures(filler.image);
  const seen = new Set<string>();
  for (const { id, namespace, value, data } of features) {
    const name = `feature 0x${id.toString(16).padStart(2, '0')}`;
    const shown = `${name} has the value 0x${value.toString(16)}`;
    if (namespace !== 0) filler.refuse(`${name} is of namespace ${namespace}, and here of the controller`);
    if (data.length > 0) filler.refuse(`${name} has data, and none here`);
    const word = FEATURE_WORDS.find((known) => known.id === id);
    let place = 0;
    if (word !== undefined) {
      filler.u32(name, word.at, value);
      if (value !== (value & word.mask) >>> 0)
        filler.refuse(`${shown}, of which this controller has 0x${word.mask.toString(16)}`);
    } else if (id === FeatureId.NUMBER_OF_QUEUES) {
      const most = queueCount(parameters.queues);
      const fits = (value & 0xffff) <= (most & 0xffff) && value >>> 16 <= most >>> 16;
      if (!fits) filler.refuse(`${shown}, more than the ${parameters.queues} queues of this controller`);
    } else if (id === FeatureId.TEMPERATURE_THRESHOLD) {
      place = value - (value % 0x10000);
      if (place === 0) filler.image.setU32(OVER_TEMPERATURE_AT, value);
      else if (place === FeatureBit.UNDER_TEMPERATURE) {
        filler.image.setU32(UNDER_TEMPERATURE_AT, value - place);
      } else filler.refuse(`${shown}, of a sensor or threshold that this controller does not have`);
    } else if (id === FeatureId.INTERRUPT_VECTOR_CONFIGURATION) {
      place = value % 0x10000;
      const disabled = value - place;
      const fits = place < parameters.msix_vectors && [0, FeatureBit.COALESCING_DISABLED].includes(disabled);
      if (fits) setCoalescingDisabled(filler.image, place, disabled !== 0);
      else filler.refuse(`${shown}, of a vector or setting that this controller does not have`);
    } else filler.refuse(`${name} does not exist here`);
    const key = `${id} ${place}`;
    if (seen.has(key)) filler.refuse(`${name} is there twice`);
    seen.add(key);
  }
}

function fillEvents(filler: ImageFiller, { pending, masked }: NvmeEvents): void {
  const { image } = filler;
  if (pending.length > EVENT_SLOTS) {
    filler.refuse(`${pending.length} pending events, more than the ${EVENT_SLOTS} there is room for`);
    return;
  }
  image.setU8(Events.COUNT, pending.length);
  for (const [index, { type, information, logPage }] of pending.entries()) {
    const at = Events.SLOTS + index * EVENT_SIZE;
    filler.u8('the type of an event', at, type);
    filler.u8('the information of an event', at + 1, information);
    filler.u8('the log page of an event', at + 2, logPage);
  }
  for (const type of masked) {
    if (!Number.isInteger(type) || type < 0 || type > 7)
      filler.refuse(`masked event type ${type} does not exist here`);
    else image.setU8(Events.MASKED, image.u8(Events.MASKED) | (1 << type));
  }
}

/** Takes the newest entries of a longer error log. */
function fillHealth(filler: ImageFiller, health: NvmeHealth): void {
  filler.u64('bytes read', HealthCounter.BYTES_READ, health.bytesRead);
  filler.u64('bytes written', HealthCounter.BYTES_WRITTEN, health.bytesWritten);
  filler.u64('read commands', HealthCounter.READ_COMMANDS, health.readCommands);
  filler.u64('write commands', HealthCounter.WRITE_COMMANDS, health.writeCommands);
  filler.u64('media errors', HealthCounter.MEDIA_ERRORS, health.mediaErrors);
  filler.u64('the number of errors', HealthCounter.ERRORS, health.errorCount);
  for (const [index, entry] of health.errors.slice(0, ERROR_SLOTS).entries()) {
    const at = ERRORS_AT + index * ERROR_SIZE;
    filler.u64('the count of an error', at + ErrorSlot.COUNT, entry.count);
    filler.u64('the LBA of an error', at + ErrorSlot.LBA, entry.lba);
    filler.u32('the namespace of an error', at + ErrorSlot.NSID, entry.namespace);
    filler.u16('the queue of an error', at + ErrorSlot.SQID, entry.submissionQueue);
    filler.u16('the command of an error', at + ErrorSlot.CID, entry.commandId);
    filler.u16('the status of an error', at + ErrorSlot.STATUS, entry.status);
  }
}
