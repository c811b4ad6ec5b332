// SPDX-License-Identifier: Apache-2.0
/**
 * A successor of an NVMe device server that fails where it is told to, run as a process of its own:
 *
 *     node faulty-successor.js SOCKET MIGRATION_SOCKET IMAGE STEP ACTION
 *
 * STEP is `negotiate` (it is asked what it is), `prepare`, `adopt` (everything has come, nothing is adopted) or `commit` (all is adopted, the lease not taken).
 * ACTION is `refuse`, `crash`, `kill`, `hang`, `murder` (of the process VICTIM,
 * or of who started this one; then continue) or `nothing`.
 */

import { createAlderNvme, ImageFile } from '../../src/devices/nvme/index.js';
import { TAKEOVER_VARIABLE } from '../../src/handoff/index.js';
import { DeviceRuntime } from '../../src/runtime/index.js';
import { Server } from '../../src/server/index.js';
import { failAs } from './fail-as.js';

const [socketPath = '', migrationSocketPath = '', imagePath = '', step = '', action = ''] =
  process.argv.slice(2);

process.stdout.write(`pid ${process.pid}\n`);

/** What the step comes to. */
async function fail(at: string): Promise<void> {
  if (at === step) await failAs(action);
}

const image = ImageFile.open({ path: imagePath, lock: false });
const runtime = new DeviceRuntime(createAlderNvme({ image }), { name: 'faulty' });
const { management, handoff: port } = runtime;
const describe = management.describe.bind(management);
management.describe = () => {
  // What ends or stops the process does so at once.
  void fail('negotiate');
  return describe();
};
const { rehearse, adopt } = port;
let prepared = false;
port.rehearse = async (format) => {
  await fail('prepare');
  await rehearse.call(port, format);
  prepared = true;
};
// A device also adopts itself, while it prepares.
port.adopt = async (...parts) => {
  if (prepared) await fail('adopt');
  await adopt.apply(port, parts);
  if (prepared) await fail('commit');
};

const takeover = process.env[TAKEOVER_VARIABLE] ?? '';
const server = new Server({ device: runtime, socketPath, migrationSocketPath, takeover });
server.ended.catch((error: Error) => {
  process.stderr.write(`${error.message}\n`);
  process.exit(1);
});
