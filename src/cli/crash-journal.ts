// SPDX-License-Identifier: Apache-2.0
/** The crash journal of `devstate serve`: on wherever a service manager keeps fds for it. */

import { Option } from 'commander';
import type { Device } from '../device/index.js';
import { type ServiceEnvironment, takeServiceEnvironment } from '../fd-store/index.js';
import { DeviceRuntime } from '../runtime/index.js';
import { CrashJournal } from '../server/index.js';
import { closeAll } from '../transport/index.js';
import type { Log } from './logger.js';

export function journalOption(): Option {
  return new Option(
    '--journal',
    'keep a crash journal although the service manager does not say that it keeps fds: systemd before 254',
  );
}

/** What this process was given by its manager; to be asked for once, at the start. */
export function serviceEnvironment({ journal = false }: { journal?: boolean }): ServiceEnvironment {
  return takeServiceEnvironment({ force: journal });
}

/** Whether a predecessor's state was kept. */
export function goesOn({ fds }: ServiceEnvironment): boolean {
  return fds.length > 0;
}

/**
 * Undefined where no one would keep it. @param wanted `--journal` was given
 * @throws DevstateError DEVSTATE_E_USAGE for a device that cannot be kept, DEVSTATE_E_JOURNAL, DEVSTATE_E_SYSTEM
 */
export function openCrashJournal(
  device: Device,
  environment: ServiceEnvironment,
  { wanted = false, log }: { wanted?: boolean | undefined; log: Log },
): CrashJournal | undefined {
  if (!wanted && (environment.notifySocket === undefined || environment.capacity === 0)) {
    closeAll(environment.fds.map(({ fd }) => fd));
    return undefined;
  }
  return CrashJournal.open({ environment, slots: DeviceRuntime.journalSlots(device), log });
}
