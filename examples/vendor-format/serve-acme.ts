// SPDX-License-Identifier: Apache-2.0
/**
 * Serves Acme's adder, another make of the model `example.org/adder`:
 * `node dist/examples/vendor-format/serve-acme.js SOCKET MIGRATION_SOCKET [FORMAT…]`. The formats are those to offer instead of all.
 */

import { DeviceRuntime, type StateFormat } from 'devstate/device';
import { Server } from 'devstate/server';
import { Adder, AdderFormat } from '../adder.js';
import { AcmeFormat } from './acme-format.js';

class AcmeAdder extends Adder {
  override readonly producer = { name: 'acme/adder', version: '2.0' };
  /** Its own first, then the one that adders of all makes have: a destination of another make takes that. */
  override readonly formats: readonly StateFormat[] = [new AcmeFormat(this), new AdderFormat(this)];
}

const [socketPath = 'acme.sock', migrationSocketPath = 'acme.mig', ...formats] = process.argv.slice(2);
const log = (level: string, message: string) => console.error(`${level}: ${message}`);
const options = { name: 'acme', log, ...(formats.length === 0 ? {} : { formats }) };
const device = new DeviceRuntime(new AcmeAdder(), options);
const server = new Server({ device, socketPath, migrationSocketPath, log });
process.once('SIGTERM', () => void server.close());
