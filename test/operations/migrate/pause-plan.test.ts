// SPDX-License-Identifier: Apache-2.0
/** What is decided about the pause, with rates that the test chooses. */

import fc from 'fast-check';
import t from 'tap';
import { type DeviceLoad, type PauseInputs, planPause } from '../../../src/operations/migrate/pause-plan.js';

const MIB = 2 ** 20;

/** Growth and rate in MiB/s. */
function load(id: string, pendingMiB: number, growth: number, rate: number, canSwitch = true): DeviceLoad {
  const perMs = MIB / 1000;
  return { id, pendingBytes: pendingMiB * MIB, growth: growth * perMs, rate: rate * perMs, canSwitch };
}

const base = { downtimeMs: 300, fixedMs: 20, lookMs: 200 };

t.test('the same writes, at different rates of copying', async (t) => {
  const at = (rate: number, pending = 40): readonly string[] =>
    planPause({ ...base, devices: [load('disk0', pending, 100, rate)] }).toMessages;
  t.same(at(1000), [], '60 ms of pages');
  t.same(at(500), [], '120 ms');
  t.same(at(90), ['disk0'], '667 ms, where 500 MB/s were once assumed');
  t.same(at(90, 1), ['disk0'], 'before they are there: 21 MiB at the next look');
  t.same(at(90, 0.1).length + planPause({ ...base, devices: [load('d', 8, 1, 90)] }).toMessages.length, 1);
});

t.test('several devices: those that add most are switched, and no more than it takes', async (t) => {
  const devices = [load('a', 1, 10, 100), load('b', 1, 100, 100), load('c', 1, 40, 100)];
  t.same(planPause({ ...base, devices }).toMessages, ['b']);
  const fixed = devices.map((device) => ({ ...device, canSwitch: device.id !== 'b' }));
  t.same(planPause({ ...base, devices: fixed }).toMessages, ['c', 'a'], 'one that cannot is left');
});

t.test('what QEMU may take', async (t) => {
  const idle = planPause({ ...base, devices: [load('disk0', 0, 0, 1000)] });
  t.match(idle, { qemuMs: 280, pagesMs: 0, totalMs: 300 });
  const busy = planPause({ ...base, devices: [load('disk0', 100, 0, 1000)] });
  t.match(busy, { qemuMs: 180, pagesMs: 100, totalMs: 300 });
  const much = planPause({ ...base, devices: [load('disk0', 1000, 0, 1000)] });
  t.match(much, { qemuMs: 75, pagesMs: 1000, totalMs: 1095 }, 'it says when it will be longer');
});

const device = fc.record({
  id: fc.uuid(),
  pendingBytes: fc.integer({ min: 0, max: 2 ** 34 }),
  growth: fc.integer({ min: 0, max: 1e7 }),
  rate: fc.integer({ min: 1, max: 1e8 }),
  canSwitch: fc.boolean(),
});
const inputs: fc.Arbitrary<PauseInputs> = fc.record({
  downtimeMs: fc.integer({ min: 1, max: 60_000 }),
  fixedMs: fc.integer({ min: 0, max: 60_000 }),
  lookMs: fc.integer({ min: 1, max: 60_000 }),
  devices: fc.uniqueArray(device, { selector: ({ id }) => id, maxLength: 6 }),
});

t.test('for any rates', async () => {
  fc.assert(
    fc.property(inputs, (given) => {
      const plan = planPause(given);
      const near = (a: number, b: number): boolean => Math.abs(a - b) <= 1e-6 * Math.max(1, a, b);
      const named = given.devices.filter(({ id }) => plan.toMessages.includes(id));
      const left = Math.max(0, given.downtimeMs - given.fixedMs);
      const budget = Math.max(left / 2, given.downtimeMs / 8);
      const all = given.devices.reduce(
        (sum, d) => sum + (d.pendingBytes + d.growth * given.lookMs) / d.rate,
        0,
      );
      if (!near(plan.totalMs, plan.fixedMs + plan.pagesMs + plan.qemuMs)) return false;
      if (plan.qemuMs < given.downtimeMs / 4 || plan.qemuMs > Math.max(left, given.downtimeMs / 4))
        return false;
      if (named.some(({ canSwitch, growth }) => !canSwitch || growth === 0)) return false;
      // Switched only where it was too much, and then as far as anybody can be.
      if (named.length > 0 && all <= budget * (1 - 1e-9)) return false;
      const rest = given.devices.filter(
        (d) => d.canSwitch && d.growth * given.lookMs > 0 && !named.includes(d),
      );
      return plan.pagesMs <= budget * (1 + 1e-9) || rest.length === 0;
    }),
  );
  fc.assert(
    fc.property(inputs, (given) => {
      const turned = { ...given, devices: given.devices.slice().reverse() };
      const [one, other] = [planPause(given).toMessages, planPause(turned).toMessages];
      const faster = { ...given, devices: given.devices.map((d) => ({ ...d, rate: d.rate * 2 })) };
      return (
        one.slice().sort().join() === other.slice().sort().join() &&
        planPause(faster).toMessages.length <= one.length
      );
    }),
  );
});
