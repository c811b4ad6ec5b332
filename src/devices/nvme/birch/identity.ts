// SPDX-License-Identifier: Apache-2.0
/** What a controller is: parameters and namespace identifiers in the header of its image, written once. */

import {
  CONTROLLER_ID,
  type NvmeParameterName,
  type NvmeParameters,
  namespaceIdentity,
} from '../spec/index.js';
import type { ControllerImage } from './controller-image.js';
import {
  COMMAND_SIZE,
  CONTROLLER_SIZE,
  EUI64_LENGTH,
  FIRMWARE_LENGTH,
  HEADER_SIZE,
  Header,
  LAYOUT_VERSION,
  MAGIC,
  MODEL_NUMBER_LENGTH,
  NGUID_LENGTH,
  QUEUE_SIZE,
  SERIAL_LENGTH,
  VECTOR_SIZE,
} from './layout.js';

export interface BirchIdentity {
  readonly controllerId: number;
  readonly parameters: NvmeParameters;
  /** 16 and 8 bytes. */
  readonly nguid: Uint8Array;
  readonly eui64: Uint8Array;
}

/** The identity of a controller with these parameters. */
export function identityOf(parameters: NvmeParameters): BirchIdentity {
  return { controllerId: CONTROLLER_ID, parameters, ...namespaceIdentity(parameters.serial) };
}

/** What each structure's size is here, by header field. */
export const STRUCTURE_SIZES: readonly { name: string; at: number; size: number }[] = [
  { name: 'header', at: Header.HEADER_SIZE, size: HEADER_SIZE },
  { name: 'controller', at: Header.CONTROLLER_SIZE, size: CONTROLLER_SIZE },
  { name: 'interrupt vector', at: Header.VECTOR_SIZE, size: VECTOR_SIZE },
  { name: 'queue', at: Header.QUEUE_SIZE, size: QUEUE_SIZE },
  { name: 'command', at: Header.COMMAND_SIZE, size: COMMAND_SIZE },
];

/** Fills the header of an image; its counts become 0. */
export function writeHeader(image: ControllerImage, identity: BirchIdentity): void {
  const { parameters } = identity;
  image.span(0, HEADER_SIZE).fill(0);
  writeText(image, Header.MAGIC, MAGIC);
  image.setU32(Header.LAYOUT_VERSION, LAYOUT_VERSION);
  for (const { at, size } of STRUCTURE_SIZES) image.setU32(at, size);
  image.setU32(Header.QUEUES, parameters.queues);
  image.setU32(Header.VECTORS, parameters.msix_vectors);
  image.setU32(Header.QUEUE_ENTRIES, parameters.queue_entries);
  image.setU32(Header.MDTS, parameters.mdts);
  image.setU32(Header.LBA_SIZE, parameters.lba_size);
  image.setU32(Header.CONTROLLER_ID, identity.controllerId);
  image.setU64(Header.NAMESPACE_SIZE, parameters.namespace_size);
  writeText(image, Header.SERIAL, parameters.serial);
  writeText(image, Header.MODEL_NUMBER, parameters.model_number);
  writeText(image, Header.FIRMWARE, parameters.firmware);
  image.bytes.set(identity.nguid, Header.NGUID);
  image.bytes.set(identity.eui64, Header.EUI64);
}

/** The identity in an image's header, as it is. */
export function readIdentity(image: ControllerImage): BirchIdentity {
  return {
    controllerId: image.u32(Header.CONTROLLER_ID),
    parameters: {
      queues: image.u32(Header.QUEUES),
      msix_vectors: image.u32(Header.VECTORS),
      queue_entries: image.u32(Header.QUEUE_ENTRIES),
      mdts: image.u32(Header.MDTS),
      lba_size: image.u32(Header.LBA_SIZE),
      namespace_size: image.u64(Header.NAMESPACE_SIZE),
      serial: readText(image, Header.SERIAL, SERIAL_LENGTH),
      model_number: readText(image, Header.MODEL_NUMBER, MODEL_NUMBER_LENGTH),
      firmware: readText(image, Header.FIRMWARE, FIRMWARE_LENGTH),
    },
    nguid: image.span(Header.NGUID, NGUID_LENGTH).slice(),
    eui64: image.span(Header.EUI64, EUI64_LENGTH).slice(),
  };
}

/** Everything in which two identities differ, one sentence each. */
export function identityDifferences(there: BirchIdentity, here: BirchIdentity): string[] {
  const compare = (name: string, a: string | number, b: string | number) =>
    a === b ? [] : [`${name} is ${shown(a)} there, ${shown(b)} here`];
  const names = Object.keys(here.parameters) as NvmeParameterName[];
  return [
    ...names.flatMap((name) => compare(name, there.parameters[name], here.parameters[name])),
    ...compare('the controller identifier', there.controllerId, here.controllerId),
    ...compare('the NGUID of the namespace', hex(there.nguid), hex(here.nguid)),
    ...compare('the EUI-64 of the namespace', hex(there.eui64), hex(here.eui64)),
  ];
}

function shown(value: string | number): string {
  return typeof value === 'string' ? JSON.stringify(value) : String(value);
}

export function hex(bytes: Uint8Array): string {
  return Buffer.from(bytes).toString('hex');
}

function writeText(image: ControllerImage, at: number, text: string): void {
  image.bytes.set(Buffer.from(text, 'latin1'), at);
}

/** Text up to its zero padding. */
export function readText(image: ControllerImage, at: number, length: number): string {
  return Buffer.from(image.span(at, length)).toString('latin1').replace(/\0+$/, '');
}
