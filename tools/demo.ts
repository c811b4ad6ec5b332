// SPDX-License-Identifier: Apache-2.0
/**
 * `npm run demo`: moves a disk that is being written to another device server, and proves that nothing was lost. With QEMU
 * if there is one or one can be had, else with the built-in guest. `--built-in` and `--qemu` insist.
 */

import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { asDevstateError, DevstateError } from '../src/errors.js';
import { demonstrateBuiltIn } from './demo-built-in.js';
import { headline } from './demo-output.js';
import { demonstrateQemu } from './demo-qemu.js';
import { type GuestParts, obtainGuest, obtainQemu, type QemuInstallation } from './qemu/provision.js';

/** What a demonstration with QEMU needs, or why it cannot be had. */
async function obtainVm(): Promise<{ qemu: QemuInstallation; guest: GuestParts } | string> {
  try {
    return { qemu: await obtainQemu(), guest: await obtainGuest() };
  } catch (error) {
    return error instanceof Error ? error.message : String(error);
  }
}

async function main(args: readonly string[]): Promise<void> {
  const unknown = args.find((arg) => arg !== '--built-in' && arg !== '--qemu');
  if (unknown !== undefined) {
    throw new DevstateError('DEVSTATE_E_USAGE', `${unknown}: only --built-in or --qemu can be given`);
  }
  const vm = args.includes('--built-in') ? 'as asked for' : await obtainVm();
  if (typeof vm === 'string' && args.includes('--qemu')) {
    throw new DevstateError('DEVSTATE_E_INTERNAL', `no QEMU: ${vm}`);
  }
  const folder = mkdtempSync(join(tmpdir(), 'devstate-demo-'));
  try {
    if (typeof vm === 'string') {
      headline('A disk moves to another device server while it is written to');
      await demonstrateBuiltIn(folder, args.includes('--built-in') ? vm : `no QEMU to be had (${vm})`);
    } else {
      headline('A Linux guest and its NVMe disk move to another QEMU and another device server');
      await demonstrateQemu(folder, vm.qemu, vm.guest);
    }
    process.stdout.write('\nThe device moved, and nothing was lost.\n');
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

try {
  await main(process.argv.slice(2));
} catch (error) {
  const { code, message, exitCode } = asDevstateError(error);
  process.stderr.write(`error: demo: ${message} (${code})\n`);
  process.exitCode = exitCode;
}
