// SPDX-License-Identifier: Apache-2.0
/** Serves an adder: `node dist/examples/serve-adder.js SOCKET MIGRATION_SOCKET [MAX_LENGTH]`. */

import { serve } from 'devstate/runtime';
import { Adder } from './adder.js';

const [socketPath = 'adder.sock', migrationSocketPath = 'adder.mig', maxLength = '65536'] =
  process.argv.slice(2);
const log = (level: string, message: string) => console.error(`${level}: ${message}`);
const server = serve(new Adder(Number(maxLength)), { name: 'adder', socketPath, migrationSocketPath, log });
process.once('SIGTERM', () => void server.close());
