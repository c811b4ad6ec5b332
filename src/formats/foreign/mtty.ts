// SPDX-License-Identifier: Apache-2.0
/**
 * State of the serial ports of Linux's sample device mtty (samples/vfio-mdev/mtty.c): C structures in the byte order of
 * the host, of which only little endian is recognised.
 *
 *       0 │ magic u64 │ major u32 │ minor u32 │ ports u32 │ flags u32 │
 *      24 │ a port, 36 bytes: registers, loop-back buffer, divisor, FIFO control │ … │
 */

import { fieldsOf, type Layout, listOf } from './layout.js';
import { damaged, unsupported } from './section-context.js';
import { walkedKind } from './walk-reader.js';
import { structure } from './walk-steps.js';

const MAGIC = 0x7e9d09898c3e2c4en;
const MAJOR_VERSION = 1;
const HEADER_LENGTH = 24;
const PORT_LENGTH = 36;
const PORTS_MAX = 2;

const HEADER: Layout = [
  ['major', 'u32', 8],
  ['minor', 'u32', 12],
  ['ports', 'u32', 16],
  ['flags', 'u32', 20],
];
const REGISTERS_LENGTH = 8;
const FIFO = { offset: 8, length: 16 } as const;
const PORT: Layout = [
  ['fifoHead', 'u8', 24],
  ['fifoTail', 'u8', 25],
  ['fifoCount', 'u8', 26],
  ['dlab', 'u8', 27],
  ['overrun', 'u8', 28],
  ['divisor', 'u16', 30],
  ['fifoControl', 'u8', 32],
  ['maxFifoSize', 'u8', 33],
  ['interruptTriggerLevel', 'u8', 34],
];

export const mttyKind = walkedKind({
  name: 'mtty',
  title: 'Linux mtty sample device state',
  probeLength: 8,
  matches: (first) => first.length >= 8 && Buffer.from(first).readBigUInt64LE() === MAGIC,
  *walk(context) {
    const { input } = context;
    let ports = 0;
    let major = 0;
    const start = input.offset;
    yield* structure(context, 'header', HEADER_LENGTH, (bytes) => {
      if (bytes.readBigUInt64LE() !== MAGIC)
        throw damaged(start, 'it does not begin with mtty’s magic number');
      major = bytes.readUInt32LE(8);
      ports = bytes.readUInt32LE(16);
      return fieldsOf(HEADER, bytes);
    });
    if (major !== MAJOR_VERSION) throw unsupported(start, `it is of version ${major}, not ${MAJOR_VERSION}`);
    if (ports > PORTS_MAX) throw damaged(start, `it is of ${ports} ports, mtty has at most ${PORTS_MAX}`);
    for (let port = 0; port < ports; port++) {
      yield* structure(context, `port ${port}`, PORT_LENGTH, (bytes) => ({
        registers: listOf('u8', bytes.subarray(0, REGISTERS_LENGTH)),
        fifo: listOf('u8', bytes.subarray(FIFO.offset, FIFO.offset + FIFO.length)),
        ...fieldsOf(PORT, bytes),
      }));
    }
  },
});
