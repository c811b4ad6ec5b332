// SPDX-License-Identifier: Apache-2.0
/** MIG_DATA_READ and MIG_DATA_WRITE, and the manager's access to guest memory. */

import {
  decodeDmaTransfer,
  decodeMigrationData,
  dmaTransferHeaderLength,
  Errno,
  encodeDmaTransfer,
  encodeMigrationData,
  HEADER_LENGTH,
  MIG_DATA_LENGTH,
  MigrationState,
  migrationStateName,
  RequestError,
} from '../wire/index.js';
import type { CommandHandler, ServerContext } from './command.js';
import type { MigrationPort } from './served-device.js';

/** The migration of this connection's device. @throws RequestError ENOTTY as the kernel has it */
export function requireMigration({ migration }: ServerContext): MigrationPort {
  if (migration === undefined) throw new RequestError(Errno.ENOTTY, 'this device cannot migrate');
  return migration;
}

/** @throws RequestError ENOTTY where only the region of v1 is served */
function requireV2(context: ServerContext): MigrationPort {
  const migration = requireMigration(context);
  if (!migration.servesV2)
    throw new RequestError(Errno.ENOTTY, 'this device migrates by its region (v1) only');
  return migration;
}

function requireState(migration: MigrationPort, ...states: MigrationState[]): void {
  if (!states.includes(migration.state)) {
    throw new RequestError(Errno.EINVAL, `no migration data in ${migrationStateName(migration.state)}`);
  }
}

function requireSize(size: number, argsz: number, limit: number): void {
  if (size > limit)
    throw new RequestError(Errno.EINVAL, `migration data of ${size} bytes (at most ${limit})`);
  if (argsz < MIG_DATA_LENGTH + size)
    throw new RequestError(Errno.EINVAL, `argsz ${argsz} is too small for ${size} bytes`);
}

export const migDataRead: CommandHandler = async (context, { view, at, end }, reply) => {
  const request = decodeMigrationData(view, at, end);
  const migration = requireV2(context);
  const { STOP_COPY, PRE_COPY, PRE_COPY_P2P } = MigrationState;
  requireState(migration, STOP_COPY, PRE_COPY, PRE_COPY_P2P);
  requireSize(request.size, request.argsz, context.maxTransfer);
  const parts = await migration.read(request.size);
  const size = parts.reduce((sum, part) => sum + part.length, 0);
  reply.allocate(MIG_DATA_LENGTH);
  encodeMigrationData(reply.view, HEADER_LENGTH, { argsz: MIG_DATA_LENGTH + size, size });
  // libvfio-user pads its answers to what was asked for, and clients made with it take no others. A manager asks for much.
  const padding = context.role === 'vmm' ? request.size - size : 0;
  reply.parts = padding === 0 ? parts : [...parts, new Uint8Array(padding)];
};

export const migDataWrite: CommandHandler = (context, { view, bytes, at, end }) => {
  const request = decodeMigrationData(view, at, end);
  const migration = requireV2(context);
  requireState(migration, MigrationState.RESUMING);
  requireSize(request.size, request.argsz, context.maxTransfer);
  const start = at + MIG_DATA_LENGTH;
  if (end - start !== request.size) {
    throw new RequestError(Errno.EINVAL, `migration data of ${request.size} bytes carries ${end - start}`);
  }
  return migration.write(bytes.subarray(start, end));
};

const TRANSFER_LENGTH = dmaTransferHeaderLength(64);

/** DMA_READ by the manager: guest memory as the device sees it. */
export const managerDmaRead: CommandHandler = ({ device, maxTransfer }, { view, at, end }, reply) => {
  const { address, count } = decodeDmaTransfer(view, at, end, 64);
  if (count > maxTransfer) throw new RequestError(Errno.E2BIG, `DMA_READ of ${count} bytes`);
  reply.allocate(TRANSFER_LENGTH + count);
  encodeDmaTransfer(reply.view, HEADER_LENGTH, { address, count }, 64);
  const start = HEADER_LENGTH + TRANSFER_LENGTH;
  return device.management.readMemory(address, reply.bytes.subarray(start, start + count));
};

/** DMA_WRITE by the manager. */
export const managerDmaWrite: CommandHandler = ({ device }, { view, bytes, at, end }, reply) => {
  const { address, count } = decodeDmaTransfer(view, at, end, 64);
  const start = at + TRANSFER_LENGTH;
  if (end - start !== count)
    throw new RequestError(Errno.EINVAL, `DMA_WRITE of ${count} bytes carries ${end - start}`);
  reply.allocate(TRANSFER_LENGTH);
  encodeDmaTransfer(reply.view, HEADER_LENGTH, { address, count }, 64);
  return device.management.writeMemory(address, bytes.subarray(start, end));
};
