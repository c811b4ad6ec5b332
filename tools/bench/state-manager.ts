// SPDX-License-Identifier: Apache-2.0
/**
 * `state-manager SOURCE DESTINATION`: moves a device's state from one migration socket to another, as `devstate migrate`
 * does. Prints milliseconds, bytes, and its own peak of resident memory.
 */

import { Client, MigrationClient } from '../../src/client/index.js';
import { transferState } from '../../src/operations/state-stream.js';
import { MigrationState } from '../../src/wire/index.js';
import { peakRss } from './processes.js';

const [from = '', to = ''] = process.argv.slice(2);
const source = new MigrationClient(await Client.connect(from));
const destination = new MigrationClient(await Client.connect(to));
await destination.setState(MigrationState.RESUMING);
await source.setState(MigrationState.STOP_COPY);
const start = performance.now();
const bytes = await transferState(source, destination);
await destination.setState(MigrationState.STOP);
const milliseconds = performance.now() - start;
await destination.setState(MigrationState.RUNNING);
await source.setState(MigrationState.RUNNING);
source.close();
destination.close();
process.stdout.write(`${JSON.stringify({ milliseconds, bytes, peakRss: peakRss(process.pid) })}\n`);
