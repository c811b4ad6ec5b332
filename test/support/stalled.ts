// SPDX-License-Identifier: Apache-2.0
/** Somewhere to write to that takes nothing more until it is read: a reader that stands still, or a disk that is full. */

import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, constants, openSync, readSync, rmSync, writeFileSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { native } from '../../src/native/index.js';
import { smallFolder } from './failing-disks.js';
import { socketFolder, type Test } from './served.js';

export interface Stalled {
  /** A blocking descriptor, for the process under test. */
  readonly fd: number;
  /** All that has come since the last call; the reader reads again from the first call on. */
  readonly read: () => string;
}

/** Fills a descriptor until nothing more fits. */
function fill(fd: number): void {
  for (const size of [65536, 4096, 1]) {
    try {
      for (;;) writeSync(fd, Buffer.alloc(size, '.'));
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EAGAIN') throw error;
    }
  }
}

function reader(fd: number): () => string {
  const buffer = Buffer.alloc(65536);
  return () => {
    let text = '';
    try {
      for (let size = 1; size > 0; ) {
        size = readSync(fd, buffer);
        text += buffer.toString('utf8', 0, size);
      }
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EAGAIN') throw error;
    }
    return text;
  };
}

/** A pipe that is full. @returns also where it is */
export function fullPipe(t: Test): Stalled & { readonly path: string } {
  const path = join(socketFolder(t), 'pipe');
  execFileSync('mkfifo', [path]);
  const end = openSync(path, constants.O_RDWR | constants.O_NONBLOCK);
  fill(end);
  const fd = openSync(path, constants.O_WRONLY);
  t.teardown(() => [end, fd].forEach((each) => void closeSync(each)));
  return { fd, path, read: reader(end) };
}

/** A socket, as a service manager gives one to a service. */
export function fullSocket(t: Test): Stalled {
  const pair = new Int32Array(2);
  native.socketPair(pair);
  const [fd = -1, end = -1] = pair;
  // Filled by a process of its own, which has the open file as the one under test will: blocking.
  const filler = `import socket, sys
s = socket.socket(fileno=0)
try:
    while True: s.send(b'.' * 4096, socket.MSG_DONTWAIT)
except BlockingIOError: pass`;
  execFileSync('python3', ['-c', filler], { stdio: [fd, 'inherit', 'inherit'] });
  t.teardown(() => [end, fd].forEach((each) => void native.close(each)));
  return { fd, read: reader(end) };
}

/** A file on a file system that is full: a log that cannot be written. It can be from the first call of `read` on. */
export function fullFile(t: Test): Stalled {
  const folder = smallFolder(t, 64 * 1024);
  const fd = openSync(join(folder, 'log'), constants.O_WRONLY | constants.O_CREAT | constants.O_APPEND);
  t.teardown(() => closeSync(fd));
  const [filling, log] = [join(folder, 'fill'), openSync(join(folder, 'log'), 'r')];
  t.teardown(() => closeSync(log));
  try {
    for (;;) writeFileSync(filling, Buffer.alloc(4096), { flag: 'a' });
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOSPC') throw error;
  }
  const more = reader(log);
  const read = (): string => {
    rmSync(filling, { force: true });
    return more();
  };
  return { fd, read };
}

/** Holds a terminal's other end: says its path, waits for a line, lets the output continue, and copies it. */
const TERMINAL = `import os, pty, sys, termios, tty
master, slave = pty.openpty()
tty.setraw(slave)
termios.tcflow(slave, termios.TCOOFF)
print(os.ttyname(slave), flush=True)
sys.stdin.readline()
termios.tcflow(slave, termios.TCOON)
while True: os.write(1, os.read(master, 65536))`;

/** A terminal whose output was stopped, as by Ctrl-S. */
export async function stoppedTerminal(t: Test): Promise<Stalled> {
  const holder = spawn('python3', ['-c', TERMINAL], { stdio: ['pipe', 'pipe', 'inherit'] });
  t.teardown(() => holder.kill('SIGKILL'));
  const lines = createInterface({ input: holder.stdout });
  const [path] = (await once(lines, 'line')) as [string];
  lines.close();
  const fd = openSync(path, constants.O_WRONLY | constants.O_NOCTTY);
  t.teardown(() => closeSync(fd));
  let text = '';
  holder.stdout.setEncoding('utf8').on('data', (more: string) => {
    text += more;
  });
  const read = (): string => {
    if (!holder.stdin.writableEnded) holder.stdin.end('\n');
    holder.stdout.resume();
    const all = text;
    text = '';
    return all;
  };
  return { fd, read };
}

/** A command that runs the one after it with its stdout and stderr in a pipe. */
export interface Unread {
  readonly under: readonly string[];
  /** What came through the pipe since the last call. It is read from the first call on. */
  readonly read: () => string;
}

/** Pipes that are not read, by what is so of them. Opened twice: Node.js makes the one of stdout non-blocking. */
export const UNREAD_PIPES: readonly { readonly is: string; readonly make: (t: Test) => Unread }[] = [
  {
    is: 'is full',
    make: (t) => {
      const { path, read } = fullPipe(t);
      return { under: ['sh', '-c', 'exec "$@" >"$0" 2>"$0"', path], read };
    },
  },
  {
    is: 'has no reader any more',
    make: () => ({ under: ['bash', '-c', 'exec "$0" "$@" > >(:) 2> >(:)'], read: () => '' }),
  },
];
