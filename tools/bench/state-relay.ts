// SPDX-License-Identifier: Apache-2.0
/** `state-relay LISTEN SERVER`: a relay, for the benchmarks; SIGTERM ends it. */

import { Relay } from '../../src/relay/index.js';

const [listenPath = '', serverPath = ''] = process.argv.slice(2);
const log = (level: string, message: string) => {
  if (level !== 'info') process.stderr.write(`${level}: ${message}\n`);
};
const relay = new Relay({ listenPath, serverPath, log });
process.once('SIGTERM', () => void relay.close());
process.stdout.write('listening\n');
