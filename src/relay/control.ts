// SPDX-License-Identifier: Apache-2.0
/**
 * The relay's control socket: a line of JSON asks, a line of JSON answers.
 *
 *     {"command": "switch", "server": PATH, "state": "with" | "without"}
 *     {"result": {…}}    {"error": {"code": "DEVSTATE_E_…", "message": "…"}}
 */

import { connect as connectSocket, Socket } from 'node:net';
import { z } from 'zod';
import { asDevstateError, DevstateError, ERROR_CODES, type ErrorCode } from '../errors.js';
import { type Fd, Listener } from '../transport/index.js';
import type { SwitchReport } from './switch.js';

/** Longest line either way. */
const MAX_LINE = 64 * 1024;

const Request = z.object({
  command: z.literal('switch'),
  server: z.string().min(1),
  state: z.enum(['with', 'without']),
});
export type ControlRequest = z.infer<typeof Request>;

const Report = z.object({
  server: z.string(),
  withState: z.boolean(),
  stateBytes: z.number(),
  prepareMs: z.number(),
  heldMs: z.number(),
  drainMs: z.number(),
  catchUpMs: z.number(),
  stateMs: z.number(),
});
const Answer = z.union([
  z.object({ result: Report }),
  z.object({ error: z.object({ code: z.string(), message: z.string() }) }),
]);

/** Serves a control socket. @param carryOut may reject with a DevstateError, which is the answer then */
export function serveControl(
  path: string,
  carryOut: (request: ControlRequest) => Promise<SwitchReport>,
): { close(): void } {
  const sockets = new Set<Socket>();
  const listener = Listener.listen(path, (fd: Fd) => {
    const socket = new Socket({ fd: fd.release(), readable: true, writable: true });
    sockets.add(socket);
    socket.on('close', () => sockets.delete(socket));
    // Who does not wait for the answer does not get it.
    socket.on('error', () => {});
    void serveOne(socket, carryOut);
  });
  return {
    close: () => {
      listener.close();
      for (const socket of sockets) socket.destroy();
    },
  };
}

async function serveOne(
  socket: Socket,
  carryOut: (request: ControlRequest) => Promise<SwitchReport>,
): Promise<void> {
  let answer: unknown;
  try {
    const request = Request.safeParse(JSON.parse(await readLine(socket)));
    if (!request.success)
      throw new DevstateError(
        'DEVSTATE_E_USAGE',
        `the relay does not know that command: ${request.error.message}`,
      );
    answer = { result: await carryOut(request.data) };
  } catch (error) {
    const { code, message } = asDevstateError(
      error,
      error instanceof SyntaxError ? 'DEVSTATE_E_USAGE' : undefined,
    );
    answer = { error: { code, message } };
  }
  socket.end(`${JSON.stringify(answer)}\n`);
}

/** Has a relay carry out a command. @throws DEVSTATE_E_CONNECT, DEVSTATE_E_PROTOCOL, and what the relay answers */
export async function askRelay(path: string, request: ControlRequest): Promise<SwitchReport> {
  const socket = connectSocket(path);
  try {
    await new Promise<void>((resolve, reject) => {
      socket.once('connect', resolve);
      socket.once('error', reject);
    });
  } catch (cause) {
    const why = cause instanceof Error ? cause.message : cause;
    const message = `no relay answers at ${path} (${why}); start it with --control ${path}`;
    throw new DevstateError('DEVSTATE_E_CONNECT', message, { cause });
  }
  socket.write(`${JSON.stringify(request)}\n`);
  let line: string;
  try {
    line = await readLine(socket);
  } finally {
    socket.destroy();
  }
  const answer = parseAnswer(line);
  if ('result' in answer) return answer.result;
  const { code, message } = answer.error;
  throw new DevstateError(code in ERROR_CODES ? (code as ErrorCode) : 'DEVSTATE_E_RELAY', message);
}

function parseAnswer(line: string): z.infer<typeof Answer> {
  try {
    return Answer.parse(JSON.parse(line));
  } catch (cause) {
    const message = 'what answers at the control socket is no relay';
    throw new DevstateError('DEVSTATE_E_PROTOCOL', message, { cause });
  }
}

function readLine(socket: Socket): Promise<string> {
  return new Promise((resolve, reject) => {
    let text = '';
    socket.setEncoding('utf8');
    socket.on('data', (part: string) => {
      text += part;
      const end = text.indexOf('\n');
      if (end >= 0) resolve(text.slice(0, end));
      else if (text.length > MAX_LINE) {
        reject(new DevstateError('DEVSTATE_E_PROTOCOL', `a line of more than ${MAX_LINE} characters`));
        socket.destroy();
      }
    });
    socket.on('close', () => {
      reject(
        new DevstateError(
          'DEVSTATE_E_CONNECTION_CLOSED',
          'the control connection was closed without an answer',
        ),
      );
    });
    socket.on('error', (cause) => {
      reject(
        new DevstateError('DEVSTATE_E_CONNECTION_CLOSED', `the control connection: ${cause.message}`, {
          cause,
        }),
      );
    });
  });
}
