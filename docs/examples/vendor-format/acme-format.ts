// SPDX-License-Identifier: Apache-2.0
/**
 * A vendor's own format, and the way between it and one that others read. Acme's adder keeps its state in a C structure and
 * saves that as it is; `org.example.adder` is what adders of all makes can read. `docs/formats.md` explains it.
 *
 *     0x10000 image, 296 bytes    0 "ACM1"   4 status u32   8 total u64   16 source u64   24 result u64
 *                                 32 length u32   36 zero u32   40 the config space, 256 bytes
 *     0x10001 board, OPTIONAL     UTF-8: the board that it was saved on
 */

import { RecordFormat, type StateFormat } from 'devstate/device';
import {
  type Converter,
  type FormatDescription,
  type FormatRecord,
  parseUuid,
  type RecordConverter,
} from 'devstate/formats';
import { type Adder, Register } from '../adder.js';

const VERSION = { major: 1, minor: 0 };
const ACME = {
  uuid: parseUuid('6c1c3c05-2f5e-4d43-b0a8-8b0f7d6f9a11'),
  name: 'com.example.acme.adder',
  version: VERSION,
};
const COMMON = {
  uuid: parseUuid('0f5cf1d4-7a43-4f0e-9a53-3f1c4a1d2b60'),
  name: 'org.example.adder',
  version: VERSION,
};

const AcmeRecord = { IMAGE: 0x10000, BOARD: 0x10001 };
const CommonRecord = { CONFIG: 0x10000, REGISTERS: 0x10001 };

/** Offsets in the image; each register has the same width there. */
const Image = { MAGIC: 0, STATUS: 4, TOTAL: 8, SOURCE: 16, RESULT: 24, LENGTH: 32, CONFIG: 40 };
const IMAGE_LENGTH = 296;
const MAGIC = 0x314d_4341;
const REGISTERS_LENGTH = 0x24;
/** Where each register is, here and in the registers that the guest sees. */
const MOVES: readonly [image: number, register: number, length: number][] = [
  [Image.STATUS, Register.STATUS, 4],
  [Image.TOTAL, Register.TOTAL, 8],
  [Image.SOURCE, Register.SOURCE, 8],
  [Image.RESULT, Register.RESULT, 8],
  [Image.LENGTH, Register.LENGTH, 4],
];

function imageOf(registers: Uint8Array, config: Uint8Array): Uint8Array {
  const image = new Uint8Array(IMAGE_LENGTH);
  new DataView(image.buffer).setUint32(Image.MAGIC, MAGIC, true);
  for (const [at, register, length] of MOVES) image.set(registers.subarray(register, register + length), at);
  image.set(config, Image.CONFIG);
  return image;
}

/** @throws Error for what is no image: it comes from another process, and may be anything */
function partsOf(image: Uint8Array | undefined): { registers: Uint8Array; config: Uint8Array } {
  if (image?.length !== IMAGE_LENGTH) throw new Error('the image is missing or has the wrong length');
  const magic = new DataView(image.buffer, image.byteOffset).getUint32(Image.MAGIC, true);
  if (magic !== MAGIC) throw new Error(`an image of Acme's does not begin with 0x${magic.toString(16)}`);
  const registers = new Uint8Array(REGISTERS_LENGTH);
  for (const [at, register, length] of MOVES) registers.set(image.subarray(at, at + length), register);
  return { registers, config: image.slice(Image.CONFIG) };
}

/** What the device saves and loads. */
export const acmeFormat = (device: Adder): StateFormat =>
  new RecordFormat({
    ...ACME,
    records: {
      image: { type: AcmeRecord.IMAGE, length: IMAGE_LENGTH },
      board: { type: AcmeRecord.BOARD, optional: true },
    },
    save: () => ({
      image: imageOf(device.registers, device.config.bytes),
      board: new TextEncoder().encode('A-7'),
    }),
    load: ({ image }) => {
      const { registers, config } = partsOf(image);
      device.config.load(config);
      device.registers.set(registers);
    },
  });

/** How `inspect` explains the records. */
export const acmeDescription: FormatDescription = {
  uuid: ACME.uuid,
  recordName: (type) => ({ [AcmeRecord.IMAGE]: 'image', [AcmeRecord.BOARD]: 'board' })[type],
  describe: (type, payload) => {
    if (type === AcmeRecord.BOARD) return { board: new TextDecoder().decode(payload) };
    const view = new DataView(partsOf(payload).registers.buffer);
    return {
      status: view.getUint32(Register.STATUS, true),
      total: Number(view.getBigUint64(Register.TOTAL, true)),
      length: view.getUint32(Register.LENGTH, true),
    };
  },
};

/** `board` is not converted: it is optional, so it is kept, and there again when the state comes back. */
export const acmeConverters: readonly Converter[] = [
  { from: { ...ACME, major: 1 }, to: COMMON, losses: [], begin: fromAcme },
  { from: { ...COMMON, major: 1 }, to: ACME, losses: [], begin: toAcme },
];

function fromAcme(): RecordConverter {
  const convert = (image: Uint8Array): FormatRecord[] => {
    const { registers, config } = partsOf(image);
    return [
      { type: CommonRecord.CONFIG, optional: false, payload: config },
      { type: CommonRecord.REGISTERS, optional: false, payload: registers },
    ];
  };
  return {
    record: ({ type, payload }) => (type === AcmeRecord.IMAGE ? convert(payload) : undefined),
    end: () => [],
  };
}

function toAcme(): RecordConverter {
  const payloads = new Map<number, Uint8Array>();
  return {
    record: ({ type, payload }) => {
      if (type !== CommonRecord.CONFIG && type !== CommonRecord.REGISTERS) return undefined;
      payloads.set(type, payload.slice());
      return [];
    },
    end: () => {
      const config = payloads.get(CommonRecord.CONFIG);
      const registers = payloads.get(CommonRecord.REGISTERS);
      if (config?.length !== 256 || registers?.length !== REGISTERS_LENGTH)
        throw new Error('a record is missing or has the wrong length');
      return [{ type: AcmeRecord.IMAGE, optional: false, payload: imageOf(registers, config) }];
    },
  };
}
