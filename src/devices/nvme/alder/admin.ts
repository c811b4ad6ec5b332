// SPDX-License-Identifier: Apache-2.0
/** Admin commands (NVMe 1.4, section 5), but for those that create and delete queues. */

import {
  AdminOpcode,
  AsyncEventType,
  CDW0_FUSE_PSDT,
  CRITICAL_WARNING_TEMPERATURE,
  Dword,
  FeatureId,
  IDENTIFY_SIZE,
  IdentifyCns,
  identifyActiveNamespaces,
  identifyController,
  identifyDescriptors,
  identifyNamespace,
  LogPage,
  MIN_PAGE_SIZE,
  NSID,
  NSID_ALL,
  RETAIN_ASYNC_EVENT,
  SmartEvent,
  Status,
} from '../spec/index.js';
import { type Command, CommandError } from './command.js';
import type { Controller } from './controller.js';
import { writeToPrps } from './prp.js';
import {
  createCompletionQueue,
  createSubmissionQueue,
  deleteCompletionQueue,
  deleteSubmissionQueue,
  type Finish,
} from './queue-commands.js';

/** Starts an admin command; it ends now or later. */
export function executeAdmin(controller: Controller, command: Command): void {
  if ((command.dword(Dword.CDW0) & CDW0_FUSE_PSDT) !== 0) throw new CommandError(Status.INVALID_FIELD);
  if (command.opcode === AdminOpcode.ASYNC_EVENT_REQUEST) {
    requestEvent(controller, command);
    return;
  }
  const handler = handlers.get(command.opcode);
  if (handler === undefined) throw new CommandError(Status.INVALID_OPCODE);
  const { engine } = controller;
  const result = handler(controller, command);
  if (typeof result === 'number') {
    engine.complete(command, Status.SUCCESS, result);
    return;
  }
  (result as Promise<Finish | undefined>).then(
    (finish) =>
      controller.host.journal.transaction(() => {
        finish?.();
        engine.complete(command, Status.SUCCESS);
      }),
    (error: unknown) => engine.completeError(command, error),
  );
}

/**
 * @returns dword 0 of a completion with success, or a promise when that comes later, perhaps of what is to be done together
 * with it. @throws to fail the command
 */
type Handler = (controller: Controller, command: Command) => number | Promise<void> | Promise<Finish>;

const handlers = new Map<number, Handler>([
  [AdminOpcode.DELETE_IO_SQ, deleteSubmissionQueue],
  [AdminOpcode.CREATE_IO_SQ, createSubmissionQueue],
  [AdminOpcode.GET_LOG_PAGE, getLogPage],
  [AdminOpcode.DELETE_IO_CQ, deleteCompletionQueue],
  [AdminOpcode.CREATE_IO_CQ, createCompletionQueue],
  [AdminOpcode.IDENTIFY, identify],
  [AdminOpcode.ABORT, abort],
  [AdminOpcode.SET_FEATURES, setFeatures],
  [AdminOpcode.GET_FEATURES, getFeatures],
]);

function requestEvent(controller: Controller, command: Command): void {
  const { cid } = command;
  const { engine, events } = controller;
  // Parked first: an event that is pending completes the request at once.
  if (events.full) throw new CommandError(Status.ASYNC_EVENT_LIMIT_EXCEEDED);
  engine.park(command);
  events.request(cid);
}

function identify(controller: Controller, command: Command): Promise<void> {
  const data = identifyData(controller, command);
  return writeToPrps(controller.host.memory, command, data, controller.registers.pageSize);
}

function identifyData({ parameters }: Controller, command: Command): Uint8Array {
  const { nsid } = command;
  switch (command.dword(Dword.CDW10) & 0xff) {
    case IdentifyCns.NAMESPACE:
      requireNamespace(nsid);
      return identifyNamespace(parameters);
    case IdentifyCns.CONTROLLER:
      return identifyController(parameters);
    case IdentifyCns.ACTIVE_NAMESPACES:
      if (nsid >= NSID_ALL - 1) throw new CommandError(Status.INVALID_NAMESPACE);
      return identifyActiveNamespaces(nsid);
    case IdentifyCns.NAMESPACE_DESCRIPTORS:
      requireNamespace(nsid);
      return identifyDescriptors(parameters);
    case IdentifyCns.COMMAND_SET_NAMESPACE:
      requireNvmCommandSet(command);
      requireNamespace(nsid);
      return new Uint8Array(IDENTIFY_SIZE);
    case IdentifyCns.COMMAND_SET_CONTROLLER:
      // All zero: no limits beyond MDTS. Linux asks any controller of 1.2 or newer.
      requireNvmCommandSet(command);
      return new Uint8Array(IDENTIFY_SIZE);
    default:
      throw new CommandError(Status.INVALID_FIELD);
  }
}

function requireNamespace(nsid: number): void {
  if (nsid !== NSID) throw new CommandError(Status.INVALID_NAMESPACE);
}

/** CSI, CDW11 31:24. */
function requireNvmCommandSet(command: Command): void {
  if (command.dword(Dword.CDW11) >>> 24 !== 0) throw new CommandError(Status.INVALID_FIELD);
}

function abort({ events }: Controller, command: Command): number {
  const cdw10 = command.dword(Dword.CDW10);
  // I/O commands are never aborted: they are with the kernel, and end soon.
  const aborted = (cdw10 & 0xffff) === 0 && events.abort(cdw10 >>> 16);
  return aborted ? 0 : 1;
}

function getFeatures({ features }: Controller, command: Command): number {
  return features.get(command.dword(Dword.CDW10), command.dword(Dword.CDW11));
}

function setFeatures(controller: Controller, command: Command): number {
  const { features, health, events } = controller;
  const cdw10 = command.dword(Dword.CDW10);
  const before = health.criticalWarning(features.values) & features.values.asyncEvents;
  const result = features.set(cdw10, command.dword(Dword.CDW11));
  const id = cdw10 & 0xff;
  if (id === FeatureId.TEMPERATURE_THRESHOLD || id === FeatureId.ASYNC_EVENT_CONFIGURATION) {
    const now = health.criticalWarning(features.values) & features.values.asyncEvents;
    if ((now & ~before & CRITICAL_WARNING_TEMPERATURE) !== 0) {
      events.raise({ type: AsyncEventType.SMART, information: SmartEvent.TEMPERATURE, page: LogPage.SMART });
    }
  }
  return result;
}

function getLogPage(controller: Controller, command: Command): Promise<void> {
  const { parameters, features, health, events, host, registers } = controller;
  const cdw10 = command.dword(Dword.CDW10);
  const id = cdw10 & 0xff;
  const { nsid } = command;
  const page = health.logPage(id, features.values, parameters.firmware);
  if (page === undefined) throw new CommandError(Status.INVALID_LOG_PAGE);
  // No page is per namespace.
  if (nsid !== 0 && nsid !== NSID_ALL) throw new CommandError(Status.INVALID_FIELD);
  const dwords = (cdw10 >>> 16) + (command.dword(Dword.CDW11) & 0xffff) * 0x10000 + 1;
  const offset = command.qword(Dword.CDW12);
  const length = 4 * dwords;
  if (offset % 4 !== 0 || offset > page.length || length > MIN_PAGE_SIZE << parameters.mdts) {
    throw new CommandError(Status.INVALID_FIELD);
  }
  const data = new Uint8Array(length);
  data.set(page.subarray(offset, offset + length));
  if ((cdw10 & RETAIN_ASYNC_EVENT) === 0) {
    if (id === LogPage.ERROR_INFORMATION) events.unmask(id, AsyncEventType.ERROR);
    if (id === LogPage.SMART) events.unmask(id, AsyncEventType.SMART);
  }
  return writeToPrps(host.memory, command, data, registers.pageSize);
}
