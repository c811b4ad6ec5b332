// SPDX-License-Identifier: Apache-2.0
/**
 * A relay that is to take over from another one and fails where it is told to, run as a process of its own:
 *
 *     node faulty-relay.js LISTEN SERVER MIGRATION_SOCKET CONTROL STEP ACTION
 *
 * STEP is `prepare`, `adopt` (everything has come, nothing is adopted), `commit` (all is adopted, the lease not taken) or
 * `none`. ACTION is `refuse`, `crash`, `kill`, `hang` or `murder` (of the process VICTIM; then it continues).
 */

import { TAKEOVER_VARIABLE } from '../../src/handoff/index.js';
import { Relay } from '../../src/relay/index.js';
import { WorkReceiver } from '../../src/succession/index.js';
import { failAs } from './fail-as.js';

const [listenPath = '', serverPath = '', migrationSocketPath = '', controlPath = '', step = '', action = ''] =
  process.argv.slice(2);

type AnyReceiver = InstanceType<typeof WorkReceiver>;

process.stdout.write(`pid ${process.pid}\n`);

const fail = async (at: string): Promise<void> => {
  if (at === step) await failAs(action);
};
const { prepare, adopt } = WorkReceiver.prototype;
WorkReceiver.prototype.prepare = async function (this: AnyReceiver, offer) {
  await fail('prepare');
  return prepare.call(this, offer);
};
WorkReceiver.prototype.adopt = async function (this: AnyReceiver, bundle) {
  await fail('adopt');
  const adopted = await adopt.call(this, bundle);
  await fail('commit');
  return adopted;
};

const takeover = process.env[TAKEOVER_VARIABLE] ?? '';
const relay = new Relay({ listenPath, serverPath, migrationSocketPath, controlPath, takeover });
relay.ended.catch((error: Error) => {
  process.stderr.write(`${error.message}\n`);
  process.exit(1);
});
process.once('SIGTERM', () => void relay.close().then(() => process.exit()));
