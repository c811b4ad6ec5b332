// SPDX-License-Identifier: Apache-2.0
/**
 * What the tests with real virtual machines need. Where it cannot be had, they are skipped and say why; with
 * `DEVSTATE_REQUIRE_QEMU` set, as on a CI machine, that is a failure instead.
 */
import type { Test } from 'tap';
import {
  type GuestArchitecture,
  type GuestParts,
  obtainGuest,
  obtainQemu,
  type QemuInstallation,
} from '../../../tools/qemu/provision.js';

/** A QEMU with vfio-user, or `undefined` once `t` is skipped (or failed). */
export function requireQemu(t: Test): Promise<QemuInstallation | undefined> {
  return orSkip(t, 'QEMU with vfio-user-pci', obtainQemu);
}

/** Kernel and busybox of a Linux guest, or `undefined` once `t` is skipped (or failed). */
export function requireGuest(t: Test): Promise<GuestParts | undefined> {
  return orSkip(t, 'a Linux guest', obtainGuest);
}

/** QEMU and guest of another architecture, or `undefined` once `t` is skipped (or failed). */
export async function requireForeign(
  t: Test,
  architecture: GuestArchitecture,
): Promise<{ qemu: QemuInstallation; guest: GuestParts } | undefined> {
  return orSkip(t, `${architecture} machine`, async () => ({
    qemu: await obtainQemu(undefined, architecture),
    guest: await obtainGuest(undefined, architecture),
  }));
}

/** What `obtain` gives, or `undefined` once `t` is skipped (or failed) because there is no `what`. */
export async function orSkip<T>(t: Test, what: string, obtain: () => Promise<T>): Promise<T | undefined> {
  try {
    return await obtain();
  } catch (error) {
    const reason = `no ${what}: ${error instanceof Error ? error.message : String(error)}`;
    if (process.env.DEVSTATE_REQUIRE_QEMU) t.fail(reason);
    else t.plan(0, reason);
    return undefined;
  }
}
