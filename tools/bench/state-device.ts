// SPDX-License-Identifier: Apache-2.0
/** A device with a register block and as much state as is asked for, in records that stream. */

import {
  type Device,
  type InterruptCounts,
  PciConfigSpace,
  type StateFormat,
  type StateRecord,
} from '../../src/device/index.js';
import { parseUuid } from '../../src/formats/index.js';
import { Errno, RequestError } from '../../src/wire/index.js';

const RECORD = 0x10000;
const RECORD_BYTES = 256 * 1024;
const BAR_BYTES = 4096;

/** @param stateBytes a multiple of 1 MiB */
export function createStateDevice(stateBytes: number): Device {
  const registers = new Uint8Array(BAR_BYTES);
  const bars = [{ index: 0, size: BAR_BYTES, kind: 'memory32' }] as const;
  const identity = { vendorId: 0xde57, deviceId: 0xbe, subsystemVendorId: 0xde57, subsystemId: 0xbe };
  const interruptCounts: InterruptCounts = { intx: false, msi: 0, msix: 0 };
  return {
    model: { uri: 'devstate.org/bench-state', parameters: { bytes: stateBytes } },
    producer: { name: 'bench', version: '1' },
    config: new PciConfigSpace({ ...identity, revision: 1, classCode: 0xff0000, intx: false }, bars, []),
    bars,
    interruptCounts,
    formats: [stateFormat(stateBytes)],
    attach: () => {},
    readRegion: (_region, offset, target) => {
      for (let i = 0; i < target.length; i++) target[i] = registers[offset + i]!;
    },
    writeRegion: (_region, offset, data) => registers.set(data, offset),
    reset: () => {},
    quiesce: () => {},
    resume: () => {},
  };
}

/** The same 1 MiB again and again, as in the C server: what a device's own data would cost is not measured here. */
function stateFormat(stateBytes: number): StateFormat {
  const content = new Uint8Array(RECORD_BYTES).fill(0x5a);
  const records = stateBytes / RECORD_BYTES;
  return {
    uuid: parseUuid('7d9c54a2-6f0e-4c1d-9b1f-2b8c1f5d3a60'),
    name: 'org.devstate.bench.state',
    version: { major: 1, minor: 0 },
    *save(round): Iterable<StateRecord> {
      if (round === 'final') for (let i = 0; i < records; i++) yield { type: RECORD, payload: content };
    },
    estimate: () => stateBytes,
    load: () => {
      const loaded = new Uint8Array(RECORD_BYTES);
      let count = 0;
      return {
        record: ({ payload }) => {
          loaded.set(payload);
          count++;
        },
        commit: () => {
          if (count !== records)
            throw new RequestError(Errno.EINVAL, `${count} records instead of ${records}`);
        },
      };
    },
  };
}
