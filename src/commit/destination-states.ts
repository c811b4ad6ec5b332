// SPDX-License-Identifier: Apache-2.0
/**
 * The states of the destination.
 *
 *     accepting - receiving - landed - taking - contending - starting - running - closing - ended
 *          |          |          |        |       |     \       |
 *          |          |          |        |       |  takingRelease
 *          '----------+----------+--------+-------+-------------'-> givingUp - ending - ended
 *                                                 '---------------> lost - closing - ended
 *
 * Up to `landed` there is no right to the VM. In `contending` it depends on the token. From `starting` on there is one.
 */

import type { Base, CommonInput, CommonKind, Output, Step } from './machine.js';
import type { Arbiter, DestinationMessage, SourceMessage } from './messages.js';
import type { DestinationRecord, Outcome, WhyTaken } from './records.js';

/** `incoming` is being written. There is no copy of the VM yet: it is made when this is over, not before. */
export interface Accepting extends Base {
  readonly name: 'accepting';
  /** It was given up meanwhile. */
  readonly givenUp: boolean;
}

/** The state comes in. */
export interface Receiving extends Base {
  readonly name: 'receiving';
}

/** State loaded, view replayed, everything answered: the grant may come. */
export interface Landed extends Base {
  readonly name: 'landed';
}

/** The grant is being written (rule 3). */
export interface Taking extends Base {
  readonly name: 'taking';
  readonly arbiter: Arbiter;
  readonly why: WhyTaken;
}

/** The grant is durable, and the token is asked for: only with it, or by a word of the source, the VM may run (rule 4). */
export interface Contending extends Base {
  readonly name: 'contending';
  /** No process of before can have run the VM: the grant came to this one. */
  readonly fresh: boolean;
}

/** A right that needs no token is being written: the source's word, or an operator's. */
export interface TakingRelease extends Base {
  readonly name: 'takingRelease';
  readonly fresh: boolean;
  readonly why: WhyTaken;
}

/** The VM was told to run, by right. */
export interface Starting extends Base {
  readonly name: 'starting';
  /** Whether the right is the token, or there is none. Else the token has still to be made right. */
  readonly settled: boolean;
  readonly right: 'token' | 'word';
  readonly why: WhyTaken;
}

/** The VM runs here, or has run. `runs` is sent to the source until it answers. */
export interface Running extends Base {
  readonly name: 'running';
  readonly vm: 'running' | 'gone';
  /** `ran` is durable. */
  readonly noted: boolean;
  /** The source knows. */
  readonly done: boolean;
  readonly settled: boolean;
  readonly right: 'token' | 'word';
}

/** `gaveUp` is being written. */
export interface GivingUp extends Base {
  readonly name: 'givingUp';
}

/** This end's copy is being ended. `gaveUp` is sent only after that (rule 1). */
export interface DestinationEnding extends Base {
  readonly name: 'ending';
  /** `gaveUp` is durable. */
  readonly written: boolean;
}

/** The grant is durable and the copy is gone. It may have run. */
export interface Lost extends Base {
  readonly name: 'lost';
}

/** The last record, `finished` or `gaveUp`, is being written. Until then a restart could find an earlier one. */
export interface DestinationClosing extends Base {
  readonly name: 'closing';
  readonly outcome: Outcome;
  readonly word: DestinationWord;
}

export interface DestinationEnded extends Base {
  readonly name: 'ended';
  readonly outcome: Outcome;
  readonly word: DestinationWord;
}

/** The last word of a destination, which it gives to whoever asks again. */
export type DestinationWord = 'runs' | 'declined' | 'gaveUp' | 'gone';

export type DestinationState =
  | Accepting
  | Receiving
  | Landed
  | Taking
  | Contending
  | TakingRelease
  | Starting
  | Running
  | GivingUp
  | DestinationEnding
  | Lost
  | DestinationClosing
  | DestinationEnded;

export type DestinationInput =
  | CommonInput<SourceMessage, DestinationRecord>
  /** State loaded, view replayed, everything answered. The VM stands, and would run if it were told to. */
  | { readonly type: 'vmLanded' };
export type DestinationKind = CommonKind | SourceMessage['type'] | 'vmLanded';
export type DestinationOutput = Output<DestinationMessage, DestinationRecord>;
export type DestinationStep = Step<DestinationState, DestinationOutput>;
