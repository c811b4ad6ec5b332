// SPDX-License-Identifier: Apache-2.0
/**
 * The states of the source.
 *
 *     beginning - migrating - granting - granted - leaving - ending - closing - ended
 *                     |          |        |   \
 *                     |          |        |    releasing (and back to granted)
 *                     |          '--- goingBack
 *                     '------------- resuming - settling - closing - ended
 *
 * Up to `granting` the source has the right to the VM. From `granted` on it has it again only by way of `goingBack`.
 */

import type { Base, CommonInput, CommonKind, Output, Step, VmFound } from './machine.js';
import type { Arbiter, DestinationMessage, SourceMessage } from './messages.js';
import type { Outcome, SourceRecord, WhyBack } from './records.js';

/** `begun` is being written. Nothing has happened yet. */
export interface Beginning extends Base {
  readonly name: 'beginning';
  readonly vm: VmFound;
  /** It was given up meanwhile. */
  readonly givenUp: boolean;
}

/** Before the grant: either end may give up (rule 1). */
export interface Migrating extends Base {
  readonly name: 'migrating';
  /** `gone`: it has ended after it was stopped, and the destination may still land what was sent. */
  readonly vm: VmFound;
  readonly landed: boolean;
}

/** The promise is being written. The destination does not know of it yet. */
export interface Granting extends Base {
  readonly name: 'granting';
  readonly vm: VmFound;
  /** It was cancelled meanwhile. */
  readonly cancelled: boolean;
}

/** The promise is durable (rule 2): the VM is not run here until one of the ways out of this state is open. */
export interface Granted extends Base {
  readonly name: 'granted';
  readonly arbiter: Arbiter;
  readonly vm: VmFound;
  /** The grant has certainly not been sent, by no process of this end. */
  readonly unsent: boolean;
  /** The witness says that the destination has the token. */
  readonly tokenHeld: boolean;
  /** The destination says that its copy is gone, and may have run. */
  readonly destinationGone: boolean;
}

/** A promise that gives up the way by the witness too is being written, because the destination cannot reach it. */
export interface Releasing extends Omit<Granted, 'name'> {
  readonly name: 'releasing';
}

/** `back` is being written, because there is a right to run again. */
export interface GoingBack extends Base {
  readonly name: 'goingBack';
  readonly why: WhyBack;
  readonly vm: VmFound;
}

/** The VM was told to run, by right. */
export interface Resuming extends Base {
  readonly name: 'resuming';
  /** Not set where the grant was never durable, so that no token can have changed. */
  readonly why: WhyBack | undefined;
}

/** The VM runs here. The token is made to say so. */
export interface Settling extends Base {
  readonly name: 'settling';
  readonly why: WhyBack;
}

/** `moved` is being written. */
export interface Leaving extends Base {
  readonly name: 'leaving';
}

/** This end's copy of the VM is being ended. */
export interface SourceEnding extends Base {
  readonly name: 'ending';
}

/** `closed` is being written. */
export interface SourceClosing extends Base {
  readonly name: 'closing';
  readonly outcome: Outcome;
  readonly why: WhyBack | undefined;
}

export interface SourceEnded extends Base {
  readonly name: 'ended';
  readonly outcome: Outcome;
  readonly why: WhyBack | undefined;
}

export type SourceState =
  | Beginning
  | Migrating
  | Granting
  | Granted
  | Releasing
  | GoingBack
  | Resuming
  | Settling
  | Leaving
  | SourceEnding
  | SourceClosing
  | SourceEnded;

export type SourceInput = CommonInput<DestinationMessage, SourceRecord>;
export type SourceKind = CommonKind | DestinationMessage['type'];
export type SourceOutput = Output<SourceMessage, SourceRecord>;
export type SourceStep = Step<SourceState, SourceOutput>;
