// SPDX-License-Identifier: Apache-2.0
/**
 * The state of an NVMe controller as any vendor's implementation can give and take it: the value that the standard
 * format `org.devstate.nvme` encodes. Everything a guest can tell of the controller is here, named as in the NVMe base
 * specification; nothing of how an implementation works is.
 *
 * Addresses are guest physical, in bytes, below 2^53. Sizes of queues are numbers of entries (not 0-based).
 */

import type { PciFunctionState } from '../pci/state.js';

export interface NvmeState {
  readonly identity: NvmeIdentity;
  readonly pci: PciFunctionState;
  readonly registers: NvmeRegisters;
  /** In order of identifier; 0 is the admin queue. */
  readonly submissionQueues: readonly NvmeSubmissionQueue[];
  readonly completionQueues: readonly NvmeCompletionQueue[];
  /** Completions that are due and not yet in their queue (no room), oldest first within a completion queue. */
  readonly completions: readonly NvmeCompletion[];
  /** Commands taken from their queue and not completed, oldest first. Whoever loads them carries them out from their beginning. */
  readonly commands: readonly NvmeCommand[];
  readonly features: readonly NvmeFeature[];
  readonly events: NvmeEvents;
  /** For log pages; a reader without such counters may do without. */
  readonly health: NvmeHealth;
}

/** What the controller is, given when it was made: a loader compares and never takes it over. */
export interface NvmeIdentity {
  readonly controllerId: number;
  readonly serial: string;
  readonly modelNumber: string;
  readonly firmware: string;
  /** I/O queue pairs it can have. */
  readonly queues: number;
  readonly msixVectors: number;
  /** Entries a queue can have: CAP.MQES + 1. */
  readonly queueEntries: number;
  /** MDTS: log2 of pages of 4 KiB. */
  readonly mdts: number;
  readonly namespaces: readonly NvmeNamespace[];
}

export interface NvmeNamespace {
  readonly id: number;
  /** Bytes. */
  readonly size: number;
  /** Bytes. */
  readonly lbaSize: number;
  /** 16 bytes; all zero if there is none. */
  readonly nguid: Uint8Array;
  /** 8 bytes; all zero if there is none. */
  readonly eui64: Uint8Array;
}

export interface NvmeRegisters {
  readonly cc: number;
  readonly csts: number;
  /** INTMS and INTMC, which read alike: bit set, vector masked. */
  readonly interruptMask: number;
  readonly aqa: number;
  readonly asq: number;
  readonly acq: number;
}

interface NvmeQueue {
  readonly id: number;
  /** Address of the queue (PRP1 of the command that created it); of its first entry when it is physically contiguous. */
  readonly base: number;
  readonly entries: number;
  readonly head: number;
  readonly tail: number;
  readonly physicallyContiguous: boolean;
}

export interface NvmeSubmissionQueue extends NvmeQueue {
  readonly completionQueue: number;
  /** QPRIO, 0 to 3. */
  readonly priority: number;
}

export interface NvmeCompletionQueue extends NvmeQueue {
  /** Phase tag of the next entry to be written, 0 or 1. */
  readonly phase: number;
  readonly vector: number;
  readonly interruptsEnabled: boolean;
}

export interface NvmeCompletion {
  readonly submissionQueue: number;
  readonly commandId: number;
  /** Status field without the phase tag: SC, SCT, CRD, M, DNR from bit 0 on (bits 15:1 of the entry's). */
  readonly status: number;
  /** Dword 0 of the entry. */
  readonly result: number;
}

export interface NvmeCommand {
  readonly submissionQueue: number;
  /** The submission queue entry, 64 bytes. */
  readonly entry: Uint8Array;
}

/** A feature as Set Features sets it. A feature that takes a selector in dword 11 (temperature threshold, vector) occurs once for each. */
export interface NvmeFeature {
  /** FID. */
  readonly id: number;
  /** NSID; 0 for a feature of the controller. */
  readonly namespace: number;
  /** Dword 11. */
  readonly value: number;
  /** The data of features that have some; else empty. */
  readonly data: Uint8Array;
}

export interface NvmeEvents {
  /** Command identifiers of outstanding Asynchronous Event Requests, oldest first. */
  readonly requests: readonly number[];
  /** Events that wait for a request, oldest first. */
  readonly pending: readonly NvmeEvent[];
  /** Event types that were reported and whose log page has not been read since. */
  readonly masked: readonly number[];
}

export interface NvmeEvent {
  readonly type: number;
  readonly information: number;
  readonly logPage: number;
}

export interface NvmeHealth {
  readonly bytesRead: number;
  readonly bytesWritten: number;
  readonly readCommands: number;
  readonly writeCommands: number;
  readonly mediaErrors: number;
  /** Errors ever, of which `errors` holds the newest. */
  readonly errorCount: number;
  /** Newest first. */
  readonly errors: readonly NvmeErrorEntry[];
}

/** Entry of the Error Information log. */
export interface NvmeErrorEntry {
  readonly count: number;
  readonly submissionQueue: number;
  readonly commandId: number;
  /** As in `NvmeCompletion`. */
  readonly status: number;
  readonly lba: number;
  readonly namespace: number;
}
