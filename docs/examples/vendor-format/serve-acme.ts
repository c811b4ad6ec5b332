// SPDX-License-Identifier: Apache-2.0
/**
 * Serves Acme's adder, another make of the model `example.org/adder`:
 * `node dist/examples/vendor-format/serve-acme.js SOCKET MIGRATION_SOCKET [FORMAT…]`. The formats are those to offer instead of all.
 */

import type { StateFormat } from 'devstate/device';
import { serve } from 'devstate/runtime';
import { Adder, adderFormat } from '../adder.js';
import { acmeFormat } from './acme-format.js';

class AcmeAdder extends Adder {
  override readonly producer = { name: 'acme/adder', version: '2.0' };
  /** Its own first, then the one that adders of all makes have: a destination of another make takes that. */
  override readonly formats: readonly StateFormat[] = [acmeFormat(this), adderFormat(this)];
}

const [socketPath = 'acme.sock', migrationSocketPath = 'acme.mig', ...formats] = process.argv.slice(2);
const log = (level: string, message: string) => console.error(`${level}: ${message}`);
const options = { name: 'acme', socketPath, migrationSocketPath, log };
const server = serve(new AcmeAdder(), { ...options, ...(formats.length === 0 ? {} : { formats }) });
process.once('SIGTERM', () => void server.close());
