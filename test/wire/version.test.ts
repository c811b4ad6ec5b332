// SPDX-License-Identifier: Apache-2.0
/** VERSION: what peers really send, what is missing, what is refused. */

import t from 'tap';
import {
  type Capabilities,
  decodeVersion,
  defaultCapabilities,
  Errno,
  encodeVersion,
  type Version,
} from '../../src/wire/index.js';
import { refusal, viewOf } from '../support/hex.js';

function payload(json: string, major = 0, minor = 2, terminator = '\0'): Uint8Array {
  const text = Buffer.from(json + terminator);
  const bytes = new Uint8Array(4 + text.length);
  viewOf(bytes).setUint16(0, major, true);
  viewOf(bytes).setUint16(2, minor, true);
  bytes.set(text, 4);
  return bytes;
}

function decode(bytes: Uint8Array): Version {
  return decodeVersion(viewOf(bytes), 0, bytes.length);
}

t.test('absent or empty JSON means the defaults', async (t) => {
  for (const bytes of [payload('', 0, 2, ''), payload(''), payload('{}'), payload('{"capabilities":{}}')]) {
    t.strictSame(decode(bytes), { major: 0, minor: 2, capabilities: defaultCapabilities });
  }
});

t.test("QEMU's proposal", async (t) => {
  const json = `{"capabilities": {"max_msg_fds": 16, "max_data_xfer_size": 1048576, "pgsizes": 4096,
    "max_dma_maps": 65535, "migration": {"pgsize": 4096, "max_bitmap_size": 268435456}, "write_multiple": true}}`;
  t.strictSame(decode(payload(json, 0, 0)), {
    major: 0,
    minor: 0,
    capabilities: {
      maxMsgFds: 16,
      maxDataXferSize: 1048576,
      maxDmaMaps: 65535,
      pageSizes: 4096,
      writeMultiple: true,
      twinSocket: false,
      migrationPageSize: 4096,
    },
  });
});

t.test('encoded and decoded again', async (t) => {
  const many: Capabilities[] = [
    defaultCapabilities,
    { ...defaultCapabilities, twinSocket: true },
    { ...defaultCapabilities, twinSocket: true, twinSocketFdIndex: 0, maxMsgFds: 0, writeMultiple: true },
    {
      ...defaultCapabilities,
      migrationPageSize: 4096,
      maxDataXferSize: 4,
      maxDmaMaps: 1,
      pageSizes: 3 << 20,
    },
  ];
  for (const capabilities of many) {
    const version = { major: 0, minor: 1, capabilities };
    const bytes = encodeVersion(version);
    t.equal(bytes.at(-1), 0, 'ends with NUL');
    t.strictSame(decode(bytes), version);
  }
});

t.test('unknown keys are ignored, wherever they are', async (t) => {
  const json = `{"x": [1], "capabilities": {"y": null, "__proto__": {"max_msg_fds": 3}, "twin_socket": {"supported": true, "z": 1}}}`;
  t.strictSame(decode(payload(json)).capabilities, { ...defaultCapabilities, twinSocket: true });
});

t.test('what is refused', async (t) => {
  const wrong: [string, Uint8Array][] = [
    ['three bytes', new Uint8Array(3)],
    ['no NUL', payload('{}', 0, 2, '')],
    ['not JSON', payload('{')],
    ['JSON and more', payload('{}\0{}')],
    ['not an object', payload('[]')],
    ['null', payload('null')],
    ['a number as text', payload('{"capabilities":{"max_msg_fds":"16"}}')],
    ['negative', payload('{"capabilities":{"max_msg_fds":-1}}')],
    ['fraction', payload('{"capabilities":{"max_data_xfer_size":1.5}}')],
    ['too many fds', payload('{"capabilities":{"max_msg_fds":1025}}')],
    ['beyond 2^53', payload('{"capabilities":{"max_dma_maps":1e300}}')],
    ['twin socket of the wrong type', payload('{"capabilities":{"twin_socket":true}}')],
    ['write_multiple of the wrong type', payload('{"capabilities":{"write_multiple":1}}')],
    ['longer than any', payload(`{"x":"${'y'.repeat(65536)}"}`)],
    ['nested without end', payload('['.repeat(60000))],
  ];
  for (const [name, bytes] of wrong) {
    t.equal(
      refusal(() => decode(bytes)),
      Errno.EINVAL,
      name,
    );
  }
});
