// SPDX-License-Identifier: Apache-2.0
/**
 * What others do while a VM leaves, each at one command of the migration: the caller cancels or the time is over, QEMU's
 * migration fails, the guest resets or powers off, other clients stop, run, reset or end a QEMU. For each what the error
 * says, word for word, and how both ends are left.
 */
import t, { type Test } from 'tap';
import { Refusal } from '../../support/qemu-hosts.js';
import type { QemuModel } from '../../support/qemu-model.js';
import { until } from '../../support/served.js';
import { Bed, ID, type Where } from './bed.js';
import { whyNotRecovered } from './sweep.js';

const LIMIT_MS = 1500;

type Event =
  | { readonly by: 'caller'; does(bed: Bed): unknown }
  | { readonly by: Where; does(qemu: QemuModel): unknown };

const EVENTS = {
  'the caller cancels': { by: 'caller', does: ({ cancel }) => cancel.abort() },
  'the time is over': { by: 'caller', does: ({ time }) => time.pass(LIMIT_MS) },
  "the source's migration fails": {
    by: 'source',
    does: (qemu) => qemu.failMigration('No space left on device'),
  },
  "the destination's migration fails": {
    by: 'destination',
    does: (qemu) => qemu.failMigration('Unknown section 7'),
  },
  'the guest resets': { by: 'source', does: (qemu) => qemu.reset() },
  'the guest powers off': { by: 'source', does: (qemu) => qemu.powerOff() },
  migrate_cancel: { by: 'source', does: (qemu) => qemu.execute('migrate_cancel', {}) },
  stop: { by: 'source', does: (qemu) => qemu.stop() },
  cont: { by: 'source', does: (qemu) => qemu.cont() },
  'stop and cont': {
    by: 'source',
    does: (qemu) => {
      qemu.stop();
      qemu.cont();
    },
  },
  quit: { by: 'source', does: (qemu) => qemu.quit('host-qmp-quit') },
  device_del: { by: 'source', does: (qemu) => qemu.deleteDevice(ID) },
  'reset at the destination': { by: 'destination', does: (qemu) => qemu.reset() },
  'cont at the destination': { by: 'destination', does: (qemu) => qemu.cont() },
  'quit at the destination': { by: 'destination', does: (qemu) => qemu.quit('host-qmp-quit') },
} as const satisfies Record<string, Event>;

/** What comes of it: the error after its phase, or none; and both ends. */
interface Outcome {
  readonly error?: readonly [code: string, says: string];
  readonly left: string;
}

const HERE = 'device RUNNING with the image';
const BACK = `source running, ${HERE}; destination ended, device RUNNING`;
const MOVED: Outcome = { left: `source postmigrate, device STOP; destination running, ${HERE}` };
const MOVED_PAUSED: Outcome = { left: `source postmigrate, device STOP; destination paused, ${HERE}` };

/** It ends, and the source continues. */
function back(code: string, says: string): Outcome {
  return { error: [code, `${says}; the VM runs on at the source`], left: BACK };
}

/** It ends, and the source stays or is gone, as its guest or another client has it. */
function ended(code: string, says: string, status: string): Outcome {
  const left = `source ${status}, ${HERE}; destination ended, device RUNNING`;
  const how = status === 'ended' ? 'its QEMU has ended' : `the VM stays at the source, ${status}`;
  return { error: [code, `${says}; ${how}`], left };
}

/** Refused: nothing has changed. */
function untouched(code: string, says: string): Outcome {
  return { error: [code, says], left: `source running, ${HERE}; destination inmigrate, device RUNNING` };
}

const CANCELLED = ['DEVSTATE_E_CANCELLED', 'the migration was cancelled'] as const;
const LATE = ['DEVSTATE_E_TIMEOUT', 'the migration did not complete within 1.5 s'] as const;
const OFF = ['DEVSTATE_E_VM_ENDED', 'the guest powered off'] as const;

const FAILED_HERE = back(
  'DEVSTATE_E_QEMU_MIGRATION',
  "QEMU's migration failed: at the source: No space left on device",
);
const FAILED_THERE = back(
  'DEVSTATE_E_QEMU_MIGRATION',
  "QEMU's migration failed: at the destination: Unknown section 7",
);
const CANCELLED_BY_OTHERS = back(
  'DEVSTATE_E_QEMU_MIGRATION',
  "another client of QEMU has cancelled QEMU's migration (migrate_cancel)",
);
const REMOVED = back('DEVSTATE_E_VM_CHANGED', 'device disk0 was removed from the VM (device_del)');
const RUN_HERE = back('DEVSTATE_E_VM_CHANGED', 'another client of QEMU has resumed the VM (cont)');
const RESET_THERE = back(
  'DEVSTATE_E_VM_CHANGED',
  'another client of QEMU has reset the VM at the destination (system_reset), before it ran there',
);
const GONE = ended('DEVSTATE_E_VM_ENDED', 'QEMU was asked to quit', 'ended');
const GONE_THERE = back(
  'DEVSTATE_E_QMP_CLOSED',
  "QEMU's migration failed: at the destination: its QEMU has ended, or does not answer: QMP is lost; its stderr may say why",
);
/** The destination's device stands where it was when the VM ran. */
function runThere(device: string): Outcome {
  return {
    error: [
      'DEVSTATE_E_ROLLBACK',
      'another client of QEMU has run the VM at the destination, before its devices were there; and the source could not be ' +
        'put back: the VM has run at the destination, and was stopped again there; the VM at the source stands. Mend that, ' +
        'then run devstate recover',
    ],
    left: `source postmigrate, device STOP_COPY; destination paused, device ${device} with the image`,
  };
}
const MOVED_RESET_LATE: Outcome = {
  left: `source prelaunch, device STOP; destination running, ${HERE}`,
};
const MOVED_AND_GONE: Outcome = {
  left: `source ended, device RUNNING; destination running, ${HERE}`,
};
const NOT_PUT_BACK =
  'migration settings of the source QEMU (events, return-path, pause-before-switchover, downtime-limit, max-bandwidth) could not be put back: QMP is lost';

interface More {
  /** In its device the guest finds a fresh one, or none. */
  readonly device?: 'reset' | 'removed';
  /** QEMU refuses what the client asks for. */
  readonly refused?: true;
  /** The VM was paused when the migration began. */
  readonly paused?: true;
  readonly warnings?: readonly string[];
  /** When the VM ran at both ends. */
  readonly twice?: string;
  /** The phase that the error names, if it is not the group's. */
  readonly phase?: string;
}

type Row = readonly [event: keyof typeof EVENTS, outcome: Outcome, more?: More];

/** Rows that hold at several moments of a phase. */
interface Group {
  readonly phase: string;
  /**
   * Commands: the first of that name at this QEMU while the source's migration has this status. What happens does so before
   * the command is carried out.
   */
  readonly at: readonly (readonly [where: Where, command: string, status: string])[];
  readonly rows: readonly Row[];
}

/** Not here: what a guest does itself, from `pre-switchover` on: its CPUs stand. */
const TABLE: readonly Group[] = [
  {
    phase: 'check',
    at: [['source', 'object-add', 'none']],
    rows: [
      ['the caller cancels', untouched(...CANCELLED)],
      ['the time is over', untouched(...LATE)],
      ['the guest resets', MOVED, { device: 'reset' }],
      ['the guest powers off', ended(...OFF, 'shutdown'), { phase: 'precopy' }],
      ['stop', MOVED_PAUSED],
      ['cont', MOVED, { paused: true }],
      ['stop and cont', MOVED],
      [
        'device_del',
        untouched(
          'DEVSTATE_E_PCI_DEVICE',
          'device disk0: QEMU has no PCI device with id "disk0" (no device has an id)',
        ),
        { device: 'removed' },
      ],
    ],
  },
  {
    phase: 'check',
    at: [['destination', 'object-add', 'none']],
    rows: [
      ['the caller cancels', untouched(...CANCELLED)],
      ['the time is over', untouched(...LATE)],
      ['reset at the destination', MOVED],
      ['cont at the destination', MOVED],
    ],
  },
  {
    // The QEMUs migrate nothing yet.
    phase: 'precopy',
    at: [['destination', 'migrate-incoming', 'none']],
    rows: [
      ['the caller cancels', back(...CANCELLED)],
      ['the time is over', back(...LATE)],
      ['reset at the destination', RESET_THERE],
      ['cont at the destination', MOVED],
      ['quit at the destination', GONE_THERE],
    ],
  },
  {
    phase: 'precopy',
    at: [['source', 'migrate', 'none']],
    rows: [
      ['the caller cancels', back(...CANCELLED)],
      ['the caller cancels', ended(...CANCELLED, 'paused'), { paused: true }],
      ['the time is over', back(...LATE)],
      // One of others, that began before ours.
      ["the source's migration fails", MOVED],
      ['migrate_cancel', MOVED],
      ["the destination's migration fails", FAILED_THERE],
      ['the guest resets', MOVED, { device: 'reset' }],
      ['the guest powers off', ended(...OFF, 'shutdown')],
      ['stop', MOVED_PAUSED],
      ['cont', MOVED, { paused: true }],
      ['stop and cont', MOVED],
      ['quit', GONE],
      ['device_del', REMOVED, { device: 'removed' }],
    ],
  },
  {
    phase: 'precopy',
    at: [['source', 'qom-list', 'active']],
    rows: [
      ['the caller cancels', back(...CANCELLED)],
      ['the caller cancels', ended(...CANCELLED, 'paused'), { paused: true }],
      ['the time is over', back(...LATE)],
      ["the source's migration fails", FAILED_HERE],
      ["the destination's migration fails", FAILED_THERE],
      ['migrate_cancel', CANCELLED_BY_OTHERS],
      ['the guest resets', MOVED, { device: 'reset' }],
      ['the guest powers off', ended(...OFF, 'shutdown')],
      ['stop', MOVED_PAUSED],
      ['cont', MOVED, { paused: true }],
      ['stop and cont', MOVED],
      ['quit', GONE],
      ['device_del', REMOVED, { device: 'removed' }],
      ['reset at the destination', RESET_THERE],
      ['cont at the destination', MOVED],
      ['quit at the destination', GONE_THERE],
    ],
  },
  {
    // The devices stop; INTx is silenced; the last look before QEMU sends the rest.
    phase: 'switchover',
    at: [
      ['source', 'query-pci', 'pre-switchover'],
      ['source', 'writew', 'pre-switchover'],
      ['source', 'query-migrate', 'pre-switchover'],
    ],
    rows: [
      ['the caller cancels', back(...CANCELLED)],
      ['the caller cancels', ended(...CANCELLED, 'paused'), { paused: true }],
      ['the time is over', back(...LATE)],
      ["the source's migration fails", FAILED_HERE],
      // A source that waits at `pre-switchover` says so when it is to continue.
      ["the destination's migration fails", FAILED_THERE, { phase: 'land' }],
      ['migrate_cancel', CANCELLED_BY_OTHERS],
      ['the guest resets', MOVED, { device: 'reset' }],
      ['stop', MOVED],
      ['cont', MOVED, { refused: true }],
      ['cont', MOVED_PAUSED, { paused: true, refused: true }],
      ['quit', GONE],
      ['reset at the destination', RESET_THERE],
      ['cont at the destination', MOVED],
      ['quit at the destination', GONE_THERE, { phase: 'land' }],
    ],
  },
  {
    phase: 'land',
    at: [['destination', 'stop', 'pre-switchover']],
    rows: [
      ['the caller cancels', back(...CANCELLED)],
      ['the time is over', back(...LATE)],
      ["the destination's migration fails", FAILED_THERE],
      ['reset at the destination', RESET_THERE],
      ['cont at the destination', MOVED],
      ['quit at the destination', GONE_THERE],
    ],
  },
  {
    phase: 'land',
    at: [['source', 'migrate-continue', 'pre-switchover']],
    rows: [
      ['the caller cancels', back(...CANCELLED)],
      ['the caller cancels', ended(...CANCELLED, 'postmigrate'), { paused: true }],
      ['the time is over', back(...LATE)],
      ["the source's migration fails", FAILED_HERE],
      ['migrate_cancel', CANCELLED_BY_OTHERS],
      ['the guest resets', MOVED, { device: 'reset' }],
      ['stop', MOVED],
      ['cont', MOVED, { refused: true }],
      ['quit', GONE],
    ],
  },
  {
    // QEMU has completed. QEMU's view is replayed.
    phase: 'land',
    at: [
      ['destination', 'query-pci', 'completed'],
      ['destination', 'writew', 'completed'],
    ],
    rows: [
      ['the caller cancels', back(...CANCELLED)],
      ['the caller cancels', ended(...CANCELLED, 'postmigrate'), { paused: true }],
      ['the time is over', back(...LATE)],
      ['reset at the destination', RESET_THERE],
      ['cont at the destination', runThere('STOP')],
    ],
  },
  {
    // The last looks. The source has nothing more to give.
    phase: 'land',
    at: [['source', 'query-status', 'completed']],
    rows: [
      ['the caller cancels', back(...CANCELLED)],
      ['the time is over', back(...LATE)],
      ['the guest resets', MOVED_RESET_LATE, { device: 'reset' }],
      ['migrate_cancel', MOVED],
      ['stop', MOVED],
      ['cont', RUN_HERE],
      ['cont', RUN_HERE, { paused: true }],
      ['quit', MOVED_AND_GONE, { warnings: ['the source was not looked at: QMP is lost', NOT_PUT_BACK] }],
      ['device_del', REMOVED, { device: 'removed' }],
    ],
  },
  {
    phase: 'land',
    at: [['destination', 'query-status', 'completed']],
    rows: [
      ['the caller cancels', back(...CANCELLED)],
      ['the time is over', back(...LATE)],
      ['reset at the destination', RESET_THERE],
      ['cont at the destination', runThere('RUNNING')],
    ],
  },
  {
    phase: 'commit',
    at: [['destination', 'cont', 'completed']],
    rows: [
      ['the caller cancels', MOVED],
      ['the time is over', MOVED],
      ['reset at the destination', MOVED, { device: 'reset' }],
      ['cont at the destination', MOVED],
      [
        'quit at the destination',
        { left: 'source postmigrate, device STOP; destination ended, device RUNNING' },
      ],
      [
        'cont',
        { left: `source paused, device STOP; destination running, ${HERE}` },
        {
          twice: 'destination begins to run while source runs',
          warnings: [
            'another client of QEMU has resumed the VM at the source (cont) when it had left: it was stopped there again; until then it ran at both ends, at the source without its devices',
          ],
        },
      ],
      [
        'device_del',
        { left: `source postmigrate, device RUNNING; destination running, ${HERE}` },
        {
          warnings: [
            'device disk0 (vfio-user-pci) was removed from the VM while it was migrated, and the destination QEMU has it still: remove it there (device_del disk0)',
          ],
        },
      ],
    ],
  },
  {
    phase: 'commit',
    at: [['source', 'query-migrate-capabilities', 'completed']],
    rows: [
      ['the caller cancels', MOVED],
      ['the time is over', MOVED],
      ['quit', MOVED_AND_GONE, { warnings: [NOT_PUT_BACK] }],
    ],
  },
];

/** @returns whether it was refused */
async function happen(bed: Bed, where: Where, event: Event): Promise<boolean> {
  if (event.by === 'caller') {
    event.does(bed);
    return false;
  }
  const { model } = bed[event.by].qemu;
  const work = async (): Promise<boolean> => {
    try {
      await event.does(model);
      return false;
    } catch (error) {
      if (error instanceof Refusal) return true;
      throw error;
    }
  };
  // The other QEMU does it when it is its turn.
  return event.by === where ? work() : new Promise((done) => model.later(async () => done(await work())));
}

async function leftAt(bed: Bed, where: Where): Promise<string> {
  const { qemu, served } = bed[where];
  // A server whose VMM has left makes its device ready for the next one when it has noticed.
  if (!bed.isDeviceThere(where))
    while ((await bed.stateAt(where)) !== 'RUNNING') await new Promise((resolve) => setImmediate(resolve));
  const image = bed.image.owner === served.scratch ? ' with the image' : '';
  return `${where} ${qemu.model.ended ? 'ended' : qemu.model.status}, device ${await bed.stateAt(where)}${image}`;
}

/** How the connection to a QEMU that ends is lost depends on what was on its way. */
function plain(message: string): string {
  const lost = /QMP connection lost: [^;]+(; is the peer alive\?)?; see whether QEMU still runs/g;
  return message.replaceAll(lost, 'QMP is lost');
}

/** What of a VM that has arrived is not as it is to be after a reset: its device is fresh, its memory is as it was left. */
function whyNotFresh(bed: Bed, fresh: ReturnType<Bed['viewAt']>): string[] {
  const { source, destination } = bed;
  const wrong: string[] = [];
  if (JSON.stringify(bed.viewAt('destination')) !== JSON.stringify(fresh)) wrong.push('its view');
  if (destination.served.scratch.state.memory.some((byte) => byte !== 0)) wrong.push('its state');
  const memories = [source, destination].map(({ qemu }) => Buffer.from(qemu.model.ram.bytes));
  if (memories[0]?.equals(memories[1] ?? Buffer.alloc(0)) !== true) wrong.push('the memory');
  return wrong;
}

async function run(t: Test, group: Group, at: Group['at'][number], row: Row): Promise<void> {
  const [name, { error, left }, more = {}] = row;
  const [where, command, status] = at;
  const bed = await Bed.make({ taps: false });
  const { source, destination } = bed;
  if (more.paused === true) source.qemu.model.stop();
  const fresh = bed.viewAt('destination');
  let happened = false;
  let refused = false;
  bed[where].qemu.before = async (asked) => {
    const isThere = asked.name === command && source.qemu.model.migration.status === status;
    if (!isThere || happened) return;
    happened = true;
    refused = await happen(bed, where, EVENTS[name]);
  };
  await bed.migrate({ timeoutMs: LIMIT_MS });
  t.ok(happened, 'it happened');
  t.equal(refused, more.refused === true, 'whether QEMU refused it');
  const found = bed.error === undefined ? undefined : [bed.error.code, plain(bed.error.message)];
  t.same(found, error === undefined ? undefined : [error[0], `${more.phase ?? group.phase}: ${error[1]}`]);
  t.same(bed.outcome?.warnings.map(plain), error === undefined ? (more.warnings ?? []) : undefined);
  t.equal(`${await leftAt(bed, 'source')}; ${await leftAt(bed, 'destination')}`, left);
  t.same(bed.hosts.twice, more.twice === undefined ? [] : [more.twice]);
  await until(() => bed.clients === 0);
  for (const where of ['source', 'destination'] as const)
    if (!bed[where].qemu.model.ended) t.same(bed.whyOtherSettings(where), []);
  if (left === BACK && more.device === undefined) t.same(await bed.whyNotBack(), []);
  // A guest that was paused when QEMU began to migrate has written nothing.
  if (left === MOVED.left && more.device === undefined && more.paused !== true)
    t.same(await bed.whyNotMoved(), []);
  if (more.device === 'reset') t.same(whyNotFresh(bed, fresh), []);
  if (error?.[0] === 'DEVSTATE_E_ROLLBACK') {
    t.same(await whyNotRecovered(bed), []);
    t.ok(source.qemu.model.isRunning !== destination.qemu.model.isRunning, 'it runs at one end');
  }
  await bed.close();
}

for (const group of TABLE) {
  for (const at of group.at) {
    t.test(`${group.phase}: ${at.join(' ')}`, async (t) => {
      for (const row of group.rows) {
        const [name, , { paused } = {}] = row;
        await t.test(paused === true ? `${name}, paused before` : name, (t) => run(t, group, at, row));
      }
    });
  }
}
