// SPDX-License-Identifier: Apache-2.0
/** What a command handler works with. */

import type { ConfigReadLog } from '../migration/index.js';
import type { NextVmmSteps } from '../succession/index.js';
import type { Fd } from '../transport/index.js';
import type { Capabilities, WitnessedVmm } from '../wire/index.js';
import type { Reply } from './reply.js';
import type { MigrationPort, ServedDevice } from './served-device.js';

/** A received command. Valid until its handler returns or its promise settles. */
export interface Request {
  readonly view: DataView;
  readonly bytes: Uint8Array;
  /** The payload is [at, end) of `bytes`. */
  readonly at: number;
  readonly end: number;
  /** What came along; what the handler does not take is closed. */
  readonly fds: readonly Fd[];
}

/** Who is at the other end: the VMM, or a manager on the migration socket. */
export type Role = 'vmm' | 'manager';

/** Hands the server over as a manager asks for it. @returns the report. Both are JSON texts. */
export type HandOver = (request: string) => Promise<string>;

/** The reads of configuration space that a VMM of this server has sent; undefined when there is no such VMM. */
export type ConfigReadsOf = (vmm: WitnessedVmm) => ConfigReadLog | undefined;

/** Why a command was refused. */
export interface LastError {
  /** Message id of the command. */
  readonly id: number;
  readonly words: string;
}

export interface ServerContext {
  readonly role: Role;
  readonly device: ServedDevice;
  readonly migration: MigrationPort | undefined;
  /** The other end's capabilities, as far as agreed. */
  readonly peer: Capabilities;
  /** Most bytes of one transfer. */
  readonly maxTransfer: number;
  /** Undefined where no one may ask for it. */
  readonly handOver: HandOver | undefined;
  /** Undefined where no one may ask for it, or VMMs can only come one after the other. */
  readonly nextVmm: NextVmmSteps | undefined;
  /** Where the reads of configuration space on this connection are noted; undefined for a manager's. */
  readonly configReads: ConfigReadLog | undefined;
  /** Undefined where no one may ask for it. */
  readonly configReadsOf: ConfigReadsOf | undefined;
  /** Why the last command of this connection was refused, and its message id: an errno alone does not help. */
  readonly lastError: LastError;
}

/**
 * Carries out one command and writes its reply's payload. Synchronous wherever it can be, because a vCPU waits.
 * @throws RequestError for an error reply
 */
export type CommandHandler = (context: ServerContext, request: Request, reply: Reply) => void | Promise<void>;
