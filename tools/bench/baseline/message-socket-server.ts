// SPDX-License-Identifier: Apache-2.0
/**
 * `message-socket-server SOCKET [STATE_BYTES]`: what `server.c` does, on MessageSocket and with nothing above it. Its
 * distance from the C server is what the transport costs; the distance of the real server from it, what the layers above do.
 */

import { type Frame, Listener, MessageSocket } from '../../../src/transport/index.js';

const COMMAND = { version: 1, regionRead: 9, migDataRead: 17, migDataWrite: 18 } as const;
const HEADER = 16;
const FLAG_REPLY = 1;
const MAX_DATA = 1 << 20;

const framing = {
  headerLength: HEADER,
  messageLength: (view: DataView, offset: number) => view.getUint32(offset + 4, true),
};
const limits = { maxMessageLength: MAX_DATA + 64, maxFds: 16, maxQueuedBytes: 8 * MAX_DATA };

const state = new Uint8Array(MAX_DATA).fill(0x5a);
const registers = new DataView(new ArrayBuffer(4096));
const version = Buffer.from('\0\0\u0001\0{"capabilities":{"max_msg_fds":16,"max_data_xfer_size":1048576}}\0');
const [path = '', stateBytes = String(2 ** 30)] = process.argv.slice(2);

Listener.listen(path, (fd) => {
  const reply = new Uint8Array(1024);
  const view = new DataView(reply.buffer);
  let stateLeft = Number(stateBytes);

  /** The reply's header and the first `count` bytes of the request's payload. */
  function begin(frame: Frame, count: number, extra: number): void {
    view.setUint16(0, frame.view.getUint16(0, true), true);
    view.setUint16(2, frame.view.getUint16(2, true), true);
    view.setUint32(4, HEADER + count + extra, true);
    view.setUint32(8, FLAG_REPLY, true);
    view.setUint32(12, 0, true);
    for (let i = 0; i < count; i++) reply[HEADER + i] = frame.bytes[HEADER + i]!;
  }

  const lengthOption = { length: 36 };
  const socket = new MessageSocket(fd, framing, limits, {
    message(frame) {
      switch (frame.view.getUint16(2, true)) {
        case COMMAND.version:
          begin(frame, 0, version.length);
          socket.send([reply.subarray(0, HEADER), version]);
          break;
        case COMMAND.regionRead:
          begin(frame, 16, 4);
          view.setUint32(
            HEADER + 16,
            registers.getUint32(frame.view.getUint32(HEADER, true) & 0xffc, true),
            true,
          );
          socket.send(reply, lengthOption);
          break;
        case COMMAND.migDataRead: {
          const size = Math.min(frame.view.getUint32(HEADER + 4, true), stateLeft, MAX_DATA);
          stateLeft -= size;
          begin(frame, 0, 8 + size);
          view.setUint32(HEADER, 8 + size, true);
          view.setUint32(HEADER + 4, size, true);
          socket.send([reply.slice(0, HEADER + 8), state.subarray(0, size)], { owned: true });
          break;
        }
        case COMMAND.migDataWrite:
          state.set(frame.bytes.subarray(HEADER + 8, frame.length));
          begin(frame, 0, 0);
          socket.send(reply, { length: HEADER });
          break;
        default:
          begin(frame, Math.min(frame.length - HEADER, 512), 0);
          socket.send(reply, { length: Math.min(frame.length, HEADER + 512) });
      }
    },
    closed(error) {
      if (error !== undefined) process.stderr.write(`${error.code}: ${error.message}\n`);
    },
  });
});
process.stdout.write('listening\n');
