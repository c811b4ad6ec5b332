// SPDX-License-Identifier: Apache-2.0
/** A file whose close blocks: a TCP socket with SO_LINGER and data that its peer does not read. Node.js cannot set that. */

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { MAX_MESSAGE_FDS, native } from '../../src/native/index.js';
import { socketPair } from '../../src/transport/index.js';

const PROGRAM = `
import array, socket, struct, sys
seconds, count = int(sys.argv[1]), int(sys.argv[2])
out = socket.socket(fileno=3); out.setblocking(True)
kept = []
for _ in range(count):
    listener = socket.socket(); listener.bind(('127.0.0.1', 0)); listener.listen(1)
    client = socket.socket(); client.connect(listener.getsockname()); server, _ = listener.accept()
    client.setblocking(False)
    try:
        while True: client.send(b'x' * 65536)
    except BlockingIOError: pass
    client.setblocking(True)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, seconds))
    out.sendmsg([b'1'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [client.fileno()]))])
    client.close(); kept.append((listener, server))
out.recv(1)
`;

/** `count` sockets that this process alone has open, and whose close blocks for `seconds` or until `release` is called. */
export async function lingering(
  seconds: number,
  count = 1,
): Promise<{ numbers: number[]; release(): Promise<void> }> {
  const [ours, theirs] = socketPair();
  const child = spawn('python3', ['-c', PROGRAM, String(seconds), String(count)], {
    stdio: ['ignore', 'inherit', 'inherit', theirs.number],
  });
  theirs.close();
  const received = new Int32Array(2 + MAX_MESSAGE_FDS);
  const numbers: number[] = [];
  while (numbers.length < count) {
    const got = native.receiveMessage(ours.number, new Uint8Array(1), 0, 1, received);
    if (got === 1) numbers.push(received[2]!);
    else if (got === 0) throw new Error('python3 ended before it had passed its sockets');
    else await new Promise((resolve) => setTimeout(resolve, 5));
  }
  const ended = once(child, 'exit');
  return {
    numbers,
    release: async () => {
      ours.close();
      await ended;
    },
  };
}
