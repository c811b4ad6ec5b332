// SPDX-License-Identifier: Apache-2.0
/**
 * How far a migration has come, as types. A phase takes the state that the phase before has reached, and returns the next:
 *
 *     phase        from            by way of                                      to
 *     check                                                                       checked
 *     precopy      checked         sending, rehearsed, configured, migrating      at-switchover
 *     switchover   at-switchover   stopping (anew after each reset)               stopped
 *     land         stopped         landing, source-spent, resetting               landed
 *     commit       landed          committing, in-doubt                           committed
 *
 * A state has what was found out, and what was changed, until then. `rollback` takes each but the last.
 */

import type { PciView } from '../../qemu/index.js';
import type { Stand, Watched } from './guest.js';
import type { CapturedDevice, MovedDevice, Parties, RehearsedDevice, SendingDevice } from './parties.js';
import type { PauseControl } from './pause.js';
import type { SettingsRecord } from './qemu-settings.js';
import type { Phase } from './types.js';

interface Prepared<Device extends RehearsedDevice = RehearsedDevice> extends Parties<Device> {
  readonly pause: PauseControl;
  /** What was changed, or is just being changed, of the QEMUs' migration settings. */
  readonly settings: SettingsRecord;
}

interface Standing<Device extends RehearsedDevice = RehearsedDevice> extends Prepared<Device> {
  /** How things stood when nothing had been saved yet. */
  readonly stand: Stand;
  /** QEMU's views of the devices whose INTx was, or is just being, silenced, by id: COMMAND is to be put back. */
  readonly silenced: Map<string, PciView>;
}

interface Captured extends Standing<CapturedDevice> {
  readonly saved: SwitchoverTimes;
}

interface Arrived extends Captured {
  readonly landed: LandTimes;
}

/** What the parts of a phase took, ms. They overlap, so `wallMs` is less than their sum. */
export interface SwitchoverTimes {
  readonly quiesceMs: number;
  readonly captureMs: number;
  readonly saveMs: number;
  readonly dirtyLogMs: number;
  readonly wallMs: number;
}

/** ms. QEMU's own part and the load overlap, and so do pages and replay; `wallMs` is without QEMU's part. */
export interface LandTimes {
  readonly qemuMs: number;
  readonly loadMs: number;
  readonly pagesMs: number;
  readonly replayMs: number;
  readonly resumeMs: number;
  readonly wallMs: number;
  readonly pageBytes: number;
}

interface States {
  /** All are there and fit together. Nothing has changed. */
  checked: Parties<MovedDevice>;
  /** The devices' states are on their way. The QEMUs do not know. */
  sending: Parties<SendingDevice>;
  /** The steps of the pause were rehearsed, and it is known how long they take. */
  rehearsed: Parties<RehearsedDevice> & Pick<Prepared, 'pause'>;
  /** The notes say which migration settings of the QEMUs change, and these change. */
  configured: Prepared;
  /** QEMU was asked to migrate. The VM runs. */
  migrating: Prepared;
  /** QEMU has stopped the VM and waits at `pre-switchover`; the destination has got what was sent so far. */
  'at-switchover': Prepared;
  /** The devices are stopped and saved, QEMU's view of them is captured. */
  stopping: Standing;
  /** Everything that the destination needs was taken from the devices. The source keeps it. */
  stopped: Captured;
  /** QEMU completes, the destination's devices become what the source's were. */
  landing: Captured;
  /** The destination has all that the source's device servers can give. */
  'source-spent': Captured;
  /** We reset the VM where it has arrived, as it had been where it came from. */
  resetting: Captured;
  /** The VM could run at the destination. */
  landed: Arrived;
  /** It is about to. */
  committing: Arrived;
  /** The destination was asked to run the VM, and it is unknown whether it does. */
  'in-doubt': Arrived;
  /** The VM is the destination's. `running`: not if it was paused at the source. */
  committed: Arrived & { readonly running: boolean };
}

export type State<Tag extends keyof States> = States[Tag] & { readonly tag: Tag };

type RevocableTag = Exclude<keyof States, 'committed'>;

/** All from which there may be a way back. */
export type Revocable = { [Tag in RevocableTag]: State<Tag> }[RevocableTag];

const PHASES: Readonly<Record<RevocableTag, Exclude<Phase, 'rollback'>>> = {
  checked: 'check',
  sending: 'precopy',
  rehearsed: 'precopy',
  configured: 'precopy',
  migrating: 'precopy',
  'at-switchover': 'precopy',
  stopping: 'switchover',
  stopped: 'switchover',
  landing: 'land',
  'source-spent': 'land',
  resetting: 'land',
  landed: 'land',
  committing: 'commit',
  'in-doubt': 'commit',
};

/** The phase that a state belongs to. */
export function phaseOf({ tag }: Revocable): Exclude<Phase, 'rollback'> {
  return PHASES[tag];
}

/** What is looked at while a state lasts. */
export function watchedOf(state: Revocable): Watched {
  const { source, destination, devices } = state;
  return { source, destination, devices, moment: momentOf(state) };
}

function momentOf(state: Revocable): Watched['moment'] {
  switch (state.tag) {
    case 'checked':
    case 'sending':
    case 'rehearsed':
    case 'configured':
      return { tag: 'idle' };
    case 'migrating':
    case 'at-switchover':
      return { tag: 'migrating' };
    case 'stopping':
    case 'stopped':
      return { tag: 'standing', stand: state.stand };
    case 'landing':
      return { tag: 'landing', stand: state.stand, sourceSpent: false, resetThere: false };
    case 'source-spent':
      return { tag: 'landing', stand: state.stand, sourceSpent: true, resetThere: false };
    // The next step is `cont`: whether a reset before it was ours makes no difference any more.
    case 'resetting':
    case 'landed':
      return { tag: 'landing', stand: state.stand, sourceSpent: true, resetThere: true };
    case 'committing':
    case 'in-doubt':
      return { tag: 'over' };
  }
}

/** Whether the source's device servers have something yet that the destination needs. */
export function needsSourceServers(state: Revocable): boolean {
  const moment = momentOf(state);
  return moment.tag !== 'over' && !(moment.tag === 'landing' && moment.sourceSpent);
}
