// SPDX-License-Identifier: Apache-2.0
/**
 * Where the qtest server of a QEMU is, and making one.
 *
 * Its socket lies beside the QMP socket, which gives everyone who can open it the same power, so that it opens no new door; in a
 * folder that others can write to it gets a folder of its own. We make it and hand it to QEMU, which may see other files
 * under the same paths than we do (mount namespaces). Only where QMP does not carry descriptors, as through a tunnel,
 * QEMU makes it. A later manager, or one after a crash, asks QEMU where it is, and looks with QEMU's eyes if it is not
 * there.
 */
import { once } from 'node:events';
import { chown, mkdtemp, rm, stat } from 'node:fs/promises';
import { connect, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { basename, dirname, join } from 'node:path';
import { DevstateError } from '../errors.js';
import { bindAt, Fd, setSocketOwner } from '../transport/index.js';
import * as z from '../zod.js';
import { executeWithFd } from './passed-fds.js';
import { seenBy } from './process-view.js';
import { type QmpClient, QmpCommandError } from './qmp.js';

const OBJECT_ID = 'devstate-qtest';
const CHARDEV_ID = 'devstate-qtest-socket';

const Chardevs = z.array(z.object({ label: z.string(), filename: z.string() }));
const Objects = z.array(z.object({ name: z.string() }));

/** Connects to the qtest server of a QEMU, which is added to it as far as it is missing. */
export async function connectServer(qmp: QmpClient, signal: AbortSignal): Promise<Socket> {
  const path = (await findSocket(qmp, signal)) ?? (await addSocket(qmp, signal));
  const objects = await qmp.execute('qom-list', {
    arguments: { path: '/objects' },
    schema: Objects,
    signal,
  });
  if (!objects.some(({ name }) => name === OBJECT_ID)) {
    // Without a log of its own every command would go to QEMU's stderr.
    const object = { 'qom-type': 'qtest', id: OBJECT_ID, chardev: CHARDEV_ID, log: '/dev/null' };
    await qmp.execute('object-add', { arguments: object, signal });
  }
  let reason: unknown;
  for (const place of placesOf(qmp, path)) {
    try {
      return await open(place, signal);
    } catch (error) {
      if (signal.aborted) throw error;
      reason ??= error;
    }
  }
  throw reason;
}

/** Where the socket may be that QEMU has at `path`: as this process sees it, as QEMU does, and beside the QMP socket. */
function placesOf({ pid, path: qmpPath }: QmpClient, path: string): string[] {
  return [path, ...(pid > 0 ? [seenBy(pid, path)] : []), join(dirname(qmpPath), basename(path))];
}

async function open(path: string, signal: AbortSignal): Promise<Socket> {
  const socket = connect(path);
  try {
    await once(socket, 'connect', { signal });
    return socket;
  } catch (error) {
    socket.destroy();
    throw error;
  }
}

async function findSocket(qmp: QmpClient, signal: AbortSignal): Promise<string | undefined> {
  const chardevs = await qmp.execute('query-chardev', { schema: Chardevs, signal });
  const ours = chardevs.find(({ label }) => label === CHARDEV_ID);
  return /^(?:disconnected:)?unix:(.*?),server=on/.exec(ours?.filename ?? '')?.[1];
}

/** @returns its path */
async function addSocket(qmp: QmpClient, signal: AbortSignal): Promise<string> {
  const make = async (path: string): Promise<string> => {
    if (!(await handSocket(qmp, path, signal)))
      await addChardev(qmp, { type: 'unix', data: { path } }, signal);
    return path;
  };
  try {
    if (!(await canOthersWrite(dirname(qmp.path)))) return await make(`${qmp.path}.qtest`);
  } catch (error) {
    const isUnusable = error instanceof DevstateError && UNUSABLE.includes(error.code);
    if (!isUnusable) throw error;
  }
  return await make(join(await privateFolder(qmp.pid), 'socket'));
}

/** What a place for a socket is refused with, by us or by QEMU. */
const UNUSABLE: readonly string[] = [
  'DEVSTATE_E_SYSTEM',
  'DEVSTATE_E_ADDRESS_IN_USE',
  'DEVSTATE_E_QMP_COMMAND',
];

/** @returns false where QMP carries no descriptors */
async function handSocket(qmp: QmpClient, path: string, signal: AbortSignal): Promise<boolean> {
  const fd = new Fd(bindAt(path, 0o600, 1));
  let isGiven = false;
  try {
    const owner = await ownerOf(qmp.pid);
    if (owner !== undefined) setSocketOwner(path, owner);
    const addr = { type: 'fd', data: { str: CHARDEV_ID } };
    isGiven = true;
    await executeWithFd(qmp, 'chardev-add', chardev(addr), { name: CHARDEV_ID, fd }, { signal });
    return true;
  } catch (error) {
    // QEMU may listen there if its answer was lost, or not waited for; if it does not, the next one takes the path.
    if (!isGiven || error instanceof QmpCommandError) await rm(path, { force: true });
    if (error instanceof QmpCommandError && /SCM_RIGHTS/.test(error.message)) return false;
    throw error;
  } finally {
    fd.close();
  }
}

async function addChardev(qmp: QmpClient, addr: object, signal: AbortSignal): Promise<void> {
  await qmp.execute('chardev-add', { arguments: chardev(addr), signal });
}

function chardev(addr: object): Record<string, unknown> {
  return { id: CHARDEV_ID, backend: { type: 'socket', data: { addr, server: true, wait: false } } };
}

/** Whether everybody may make files there: what lies under a name that can be foreseen may be somebody else's. */
async function canOthersWrite(folder: string): Promise<boolean> {
  const { mode } = await stat(folder);
  return (mode & 0o002) !== 0;
}

/** A folder for the user of the process `pid` and the administrator. It stays, as QEMU's socket in it does. */
async function privateFolder(pid: number): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'devstate-qtest-'));
  const owner = await ownerOf(pid);
  if (owner !== undefined) await chown(folder, owner.uid, owner.gid);
  return folder;
}

/** To whom files that are made for a process are to belong; undefined where they stay ours. */
async function ownerOf(pid: number): Promise<{ readonly uid: number; readonly gid: number } | undefined> {
  if (process.geteuid?.() !== 0 || pid <= 0) return undefined;
  return await stat(`/proc/${pid}`).catch(() => undefined);
}
