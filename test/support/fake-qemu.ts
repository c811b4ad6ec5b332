// SPDX-License-Identifier: Apache-2.0
/** A QMP server that answers as a test says. */
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { createServer, type Server, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Test } from 'tap';
import { QmpClient } from '../../src/qemu/index.js';
import { LineSplitter } from '../../src/qemu/line-splitter.js';

const GREETING =
  '{"QMP":{"version":{"qemu":{"major":11,"minor":1,"micro":3},"package":""},"capabilities":[]}}\n';

export interface Request {
  readonly execute: string;
  readonly id: number;
}

/** Stands in for a QEMU: answers as `behave` says. */
export class FakeQemu {
  readonly path: string;
  readonly commands: string[] = [];
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();

  private constructor(path: string, behave: (qemu: FakeQemu, request: Request, socket: Socket) => void) {
    this.path = path;
    this.#server = createServer((socket) => {
      this.#sockets.add(socket.on('error', () => {}));
      socket.write(GREETING);
      LineSplitter.of(socket, 1 << 20).onLine = (line) => {
        const request = JSON.parse(line) as Request;
        if (request.execute === 'qmp_capabilities') return this.answer(socket, request, {});
        this.commands.push(request.execute);
        behave(this, request, socket);
      };
    });
  }

  static async start(t: Test, behave: (qemu: FakeQemu, request: Request, socket: Socket) => void) {
    const directory = mkdtempSync(join(tmpdir(), 'devstate-vm-'));
    const qemu = new FakeQemu(join(directory, 'qmp'), behave);
    qemu.#server.listen(qemu.path);
    await once(qemu.#server, 'listening');
    const qmp = await QmpClient.connect(qemu.path);
    t.teardown(() => {
      qmp.close();
      qemu.exit();
      rmSync(directory, { recursive: true });
    });
    return { qemu, qmp };
  }

  answer(socket: Socket, { id }: Request, value: unknown): void {
    socket.write(`${JSON.stringify({ return: value, id })}\n`);
  }

  /** Says something without being asked, to everybody. */
  event(name: string, data: object = {}): void {
    const timestamp = { seconds: 1, microseconds: 0 };
    for (const socket of this.#sockets) socket.write(`${JSON.stringify({ event: name, data, timestamp })}\n`);
  }

  /** Ends as a process does: no process listens any more. */
  exit(): void {
    this.#server.close();
    for (const socket of this.#sockets) socket.destroy();
  }
}
