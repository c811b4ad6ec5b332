// SPDX-License-Identifier: Apache-2.0
/**
 * A counter server that kills itself at the n-th store to its crash journal, counted from the moment at which its guest
 * adds 13: a program for run.test.ts. Its successor, which has been given fds, lives.
 *
 *     node counter-server.js SOCKET [N]
 */

import { CounterDevice, CounterRegister } from '../../src/devices/counter/index.js';
import { takeServiceEnvironment } from '../../src/fd-store/index.js';
import { DeviceRuntime } from '../../src/runtime/index.js';
import { CrashJournal, Server } from '../../src/server/index.js';

const [socketPath = '', dieAt] = process.argv.slice(2);
const environment = takeServiceEnvironment({ force: false });
let stores = environment.fds.length > 0 ? Number.NaN : Number(dieAt);
let armed = false;

class ArmedCounter extends CounterDevice {
  override writeRegion(region: number, offset: number, data: Uint8Array): void {
    if (offset === CounterRegister.ADD && data[0] === 13) armed = true;
    if (offset === CounterRegister.ADD && data[0] === 66) process.kill(process.pid, 'SIGKILL');
    super.writeRegion(region, offset, data);
  }
}

const device = new ArmedCounter();
const crash = CrashJournal.open({
  environment,
  slots: DeviceRuntime.journalSlots(device),
  onStore: () => {
    if (armed && --stores === 0) process.kill(process.pid, 'SIGKILL');
  },
});
const server = new Server({
  device: new DeviceRuntime(device, { name: 'counter', crash }),
  socketPath,
  crash,
});
process.once('SIGTERM', async () => {
  await server.close();
  crash.close();
});
