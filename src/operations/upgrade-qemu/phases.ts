// SPDX-License-Identifier: Apache-2.0
/**
 * How far a replacement of QEMU has come, as types. A phase takes the state that the phase before has reached, and returns
 * the next:
 *
 *     phase        from            by way of                                               to
 *     check                                                                                checked
 *     start        checked         awaiting, launched (cpr-transfer)                       configured
 *     connect      configured      connecting, migrating                                   at-switchover
 *     switchover   at-switchover   stopping (anew after each reset)                        stopped
 *     land         stopped         landing, executing, executed (cpr-exec), arrived,       landed
 *                                  resetting
 *     commit       landed          committing, in-doubt                                    committed
 *
 * A state has what was found out, and what was changed, until then. `rollback` takes each but the last.
 */

import type { PciView } from '../../qemu/index.js';
import type { Stand, Watched } from '../migrate/guest.js';
import type { Vm } from '../migrate/parties.js';
import type { SettingsRecord } from '../migrate/qemu-settings.js';
import type { CapturedDevice, NewProcess, Parties, UpgradeDevice } from './parties.js';
import type { UpgradeQemuDowntime, UpgradeQemuPhase } from './types.js';

/** Where the new QEMU is. */
export type Way = Transfer | Exec;

export interface Transfer {
  readonly mode: 'cpr-transfer';
  readonly qemu: NewProcess;
}

/** In the old one's process, later. */
export interface Exec {
  readonly mode: 'cpr-exec';
}

/** Where it is when the VM's state can be sent. */
export type ReadyWay = (Transfer & { readonly destination: Vm }) | Exec;

interface Prepared<To extends Way = Way, Device extends UpgradeDevice = UpgradeDevice>
  extends Parties<Device> {
  readonly way: To;
  /** What was changed, or is just being changed, of the QEMUs' migration settings. */
  readonly settings: SettingsRecord;
}

interface Standing<To extends Way = Way, Device extends UpgradeDevice = UpgradeDevice>
  extends Prepared<To, Device> {
  /** How things stood when the devices had not been stopped yet. */
  readonly stand: Stand;
  /** The old QEMU's views of the devices that are, or are just being, silenced, by id. */
  readonly silenced: Map<string, PciView>;
}

interface Captured<To extends Way> extends Standing<To, CapturedDevice> {
  readonly stopped: Pick<UpgradeQemuDowntime, 'quiesceMs' | 'captureMs'>;
}

interface There extends Captured<Way> {
  /** The new QEMU. */
  readonly destination: Vm;
}

interface Replaced extends There {
  readonly landed: Pick<UpgradeQemuDowntime, 'qemuMs' | 'promoteMs' | 'replayMs' | 'resumeMs'>;
}

interface States {
  /** All are there and can do it. Nothing has changed. */
  checked: Parties;
  /** The devices' servers wait for another VMM. */
  awaiting: Parties;
  /** The new process comes up. */
  launched: Parties & { readonly way: Transfer };
  /** The notes say which migration settings of the old QEMU change, and these change. */
  configured: Prepared;
  /** QEMU is just being asked to migrate. */
  connecting: Prepared;
  /** It was. The VM runs. */
  migrating: Prepared;
  /** QEMU has stopped the VM and waits at `pre-switchover`. */
  'at-switchover': Prepared;
  /** The devices are stopped, the old QEMU's view of them is captured. Meanwhile the new process can be asked. */
  stopping: Standing;
  /** All is there that the new QEMU is to be told of the devices. */
  stopped: Captured<ReadyWay>;
  /** QEMU sends its own state, or writes it down and executes the new program. */
  landing: Captured<ReadyWay>;
  /** With cpr-exec: QEMU was told to write down the rest and to execute the new program; it may have, at any moment. */
  executing: Captured<Exec>;
  /** With cpr-exec: the old program is gone, and nothing can be undone. */
  executed: Captured<Exec>;
  /** The new QEMU can be asked and gets, or has, QEMU's own state. */
  arrived: There;
  /** We reset the VM in the new QEMU, as it had been in the old one. */
  resetting: There;
  /** The VM could run in the new QEMU. */
  landed: Replaced;
  /** It is about to. */
  committing: Replaced;
  /** The new QEMU was asked to run the VM, and it is unknown whether it does. */
  'in-doubt': Replaced;
  /** The VM is the new QEMU's. `running`: not if it was paused. */
  committed: Replaced & { readonly running: boolean };
}

export type State<Tag extends keyof States> = States[Tag] & { readonly tag: Tag };

type RevocableTag = Exclude<keyof States, 'committed'>;

/** All from which there may be a way back. */
export type Revocable = { [Tag in RevocableTag]: State<Tag> }[RevocableTag];

const PHASES: Readonly<Record<RevocableTag, Exclude<UpgradeQemuPhase, 'rollback'>>> = {
  checked: 'check',
  awaiting: 'start',
  launched: 'start',
  configured: 'start',
  connecting: 'connect',
  migrating: 'connect',
  'at-switchover': 'connect',
  stopping: 'switchover',
  stopped: 'switchover',
  landing: 'land',
  executing: 'land',
  executed: 'land',
  arrived: 'land',
  resetting: 'land',
  landed: 'land',
  committing: 'commit',
  'in-doubt': 'commit',
};

/** The phase that a state belongs to. */
export function phaseOf({ tag }: Revocable): Exclude<UpgradeQemuPhase, 'rollback'> {
  return PHASES[tag];
}

/** The new QEMU's process; undefined with cpr-exec, and as long as there is none. */
export function newProcess(state: Revocable | State<'committed'>): NewProcess | undefined {
  return 'way' in state && state.way.mode === 'cpr-transfer' ? state.way.qemu : undefined;
}

/** The new QEMU, if it was connected to. */
export function destinationOf(state: Revocable): Vm | undefined {
  return 'destination' in state ? state.destination : newProcess(state)?.vm;
}

/** Whether the VM's state may wait in a file still, for a program that is to read it. */
export function isStateInFile({ tag }: Revocable): boolean {
  return tag === 'executing' || tag === 'executed';
}

/** What is looked at while a state lasts. */
export function watchedOf(state: Revocable): Watched {
  const { source, devices } = state;
  return { source, destination: destinationOf(state), devices, moment: momentOf(state) };
}

function momentOf(state: Revocable): Watched['moment'] {
  switch (state.tag) {
    case 'checked':
    case 'awaiting':
    case 'launched':
    case 'configured':
    case 'connecting':
      return { tag: 'idle' };
    case 'migrating':
    case 'at-switchover':
      return { tag: 'migrating' };
    case 'stopping':
    case 'stopped':
      return { tag: 'standing', stand: state.stand };
    case 'landing':
    case 'executing':
    case 'executed':
    case 'arrived':
      return { tag: 'landing', stand: state.stand, sourceSpent: false, resetThere: false };
    // The next step is `cont`: whether a reset before it was ours makes no difference any more.
    case 'resetting':
    case 'landed':
      return { tag: 'landing', stand: state.stand, sourceSpent: false, resetThere: true };
    case 'committing':
    case 'in-doubt':
      return { tag: 'over' };
  }
}
