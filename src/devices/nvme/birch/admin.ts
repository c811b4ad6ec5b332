// SPDX-License-Identifier: Apache-2.0
/** Admin commands (NVMe 1.4, section 5). */

import {
  AdminOpcode,
  ASYNC_EVENT_LIMIT,
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
import type { Birch } from './birch.js';
import { type ControllerImage, commandAt } from './controller-image.js';
import { type EngineOwner, PARKED, PENDING } from './engine-owner.js';
import { pageRead, raiseEvent } from './events.js';
import { type FeatureReply, getFeature, setFeature } from './features.js';
import { criticalWarning, logPage } from './health.js';
import { ASYNC_EVENTS_AT, CommandSlot } from './layout.js';
import {
  createCompletionQueue,
  createSubmissionQueue,
  deleteCompletionQueue,
  deleteSubmissionQueue,
} from './queue-commands.js';
import { statusOf } from './status-of.js';
import { copyToGuest } from './transfer.js';

/** Carries out the command in a slot. @returns its status, `PENDING` or `PARKED`. @throws DmaFault */
export function executeAdmin(birch: Birch, slot: number, owner: EngineOwner): number {
  const { image, engine } = birch;
  if ((image.dword(slot, Dword.CDW0) & CDW0_FUSE_PSDT) !== 0) return Status.INVALID_FIELD;
  switch (image.opcode(slot)) {
    case AdminOpcode.DELETE_IO_SQ:
      return deleteSubmissionQueue(birch, slot);
    case AdminOpcode.CREATE_IO_SQ:
      return createSubmissionQueue(birch, slot);
    case AdminOpcode.GET_LOG_PAGE:
      return getLogPage(birch, slot);
    case AdminOpcode.DELETE_IO_CQ:
      return deleteCompletionQueue(birch, slot, owner);
    case AdminOpcode.CREATE_IO_CQ:
      return createCompletionQueue(birch, slot);
    case AdminOpcode.IDENTIFY:
      return identify(birch, slot);
    case AdminOpcode.ABORT:
      return abort(birch, slot);
    case AdminOpcode.SET_FEATURES:
      return setFeatures(birch, slot);
    case AdminOpcode.GET_FEATURES: {
      const [cdw10, cdw11] = [image.dword(slot, Dword.CDW10), image.dword(slot, Dword.CDW11)];
      return replied(image, slot, getFeature(birch, cdw10, cdw11));
    }
    case AdminOpcode.ASYNC_EVENT_REQUEST:
      return engine.waiting < ASYNC_EVENT_LIMIT ? PARKED : Status.ASYNC_EVENT_LIMIT_EXCEEDED;
    default:
      return Status.INVALID_OPCODE;
  }
}

function replied(image: ControllerImage, slot: number, reply: FeatureReply): number {
  setResult(image, slot, reply.result);
  return reply.status;
}

function setResult(image: ControllerImage, slot: number, result: number): void {
  image.setU32(commandAt(slot) + CommandSlot.RESULT, result);
}

function identify(birch: Birch, slot: number): number {
  const { image, parameters } = birch;
  const nsid = image.dword(slot, Dword.NSID);
  // CSI, CDW11 31:24: the NVM command set is the only one.
  const otherCommandSet = image.dword(slot, Dword.CDW11) >>> 24 !== 0;
  switch (image.dword(slot, Dword.CDW10) & 0xff) {
    case IdentifyCns.NAMESPACE:
      if (nsid !== NSID) return Status.INVALID_NAMESPACE;
      return send(birch, slot, identifyNamespace(parameters));
    case IdentifyCns.CONTROLLER:
      return send(birch, slot, identifyController(parameters));
    case IdentifyCns.ACTIVE_NAMESPACES:
      if (nsid >= NSID_ALL - 1) return Status.INVALID_NAMESPACE;
      return send(birch, slot, identifyActiveNamespaces(nsid));
    case IdentifyCns.NAMESPACE_DESCRIPTORS:
      if (nsid !== NSID) return Status.INVALID_NAMESPACE;
      return send(birch, slot, identifyDescriptors(parameters));
    case IdentifyCns.COMMAND_SET_NAMESPACE:
      if (otherCommandSet) return Status.INVALID_FIELD;
      if (nsid !== NSID) return Status.INVALID_NAMESPACE;
      return send(birch, slot, new Uint8Array(IDENTIFY_SIZE));
    case IdentifyCns.COMMAND_SET_CONTROLLER:
      // All zero: no limits beyond MDTS. Linux asks any controller of 1.2 or newer.
      if (otherCommandSet) return Status.INVALID_FIELD;
      return send(birch, slot, new Uint8Array(IDENTIFY_SIZE));
    default:
      return Status.INVALID_FIELD;
  }
}

/** Only event requests are aborted: I/O commands end soon by themselves. Dword 0 says whether it was. */
function abort({ image, engine }: Birch, slot: number): number {
  const cdw10 = image.dword(slot, Dword.CDW10);
  const aborted = (cdw10 & 0xffff) === 0 && engine.answerRequest(cdw10 >>> 16, Status.ABORT_REQUESTED);
  setResult(image, slot, aborted ? 0 : 1);
  return Status.SUCCESS;
}

function setFeatures(birch: Birch, slot: number): number {
  const { image } = birch;
  const before = announcedWarning(image);
  const cdw10 = image.dword(slot, Dword.CDW10);
  const status = replied(image, slot, setFeature(birch, cdw10, image.dword(slot, Dword.CDW11)));
  const id = cdw10 & 0xff;
  const concerned = id === FeatureId.TEMPERATURE_THRESHOLD || id === FeatureId.ASYNC_EVENT_CONFIGURATION;
  if (status === Status.SUCCESS && concerned && (announcedWarning(image) & ~before) !== 0) {
    raiseEvent(birch, AsyncEventType.SMART, SmartEvent.TEMPERATURE, LogPage.SMART);
  }
  return status;
}

/** The temperature warning, if there is one and the guest wants to be told. */
function announcedWarning(image: ControllerImage): number {
  return criticalWarning(image) & image.u32(ASYNC_EVENTS_AT) & CRITICAL_WARNING_TEMPERATURE;
}

function getLogPage(birch: Birch, slot: number): number {
  const { image, parameters } = birch;
  const cdw10 = image.dword(slot, Dword.CDW10);
  const id = cdw10 & 0xff;
  const nsid = image.dword(slot, Dword.NSID);
  const page = logPage(image, id, parameters.firmware);
  if (page === undefined) return Status.INVALID_LOG_PAGE;
  // No page is per namespace.
  if (nsid !== 0 && nsid !== NSID_ALL) return Status.INVALID_FIELD;
  const dwords = (cdw10 >>> 16) + (image.dword(slot, Dword.CDW11) & 0xffff) * 0x10000 + 1;
  const offset = image.qword(slot, Dword.CDW12);
  const tooLong = 4 * dwords > MIN_PAGE_SIZE << parameters.mdts;
  if (offset % 4 !== 0 || offset > page.length || tooLong) return Status.INVALID_FIELD;
  const data = new Uint8Array(4 * dwords);
  data.set(page.subarray(offset, offset + data.length));
  if ((cdw10 & RETAIN_ASYNC_EVENT) === 0) {
    if (id === LogPage.ERROR_INFORMATION) pageRead(birch, id, AsyncEventType.ERROR);
    if (id === LogPage.SMART) pageRead(birch, id, AsyncEventType.SMART);
  }
  return send(birch, slot, data);
}

/** Ends the command when its data are with the guest. */
function send(birch: Birch, slot: number, data: Uint8Array): number {
  const sent = copyToGuest(birch, slot, data);
  if (typeof sent === 'number') return sent;
  sent.then(
    (status) => birch.engine.finish(slot, status),
    (error: unknown) => birch.engine.finish(slot, statusOf(birch.host, error)),
  );
  return PENDING;
}
