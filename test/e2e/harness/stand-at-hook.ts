// SPDX-License-Identifier: Apache-2.0
/**
 * Loaded by `--import` into a `devstate` that is to stand still when it has reported that it enters the phase STAND_AT: it
 * stops itself, so that what a test does meanwhile comes neither too early nor too late. See `RunningMigration.at`.
 */
import { loadPackageAddon } from '../../../src/native/loader.js';

const addon = loadPackageAddon();
const { outputWrite } = addon;
const sign = `"phase":"${process.env.STAND_AT}"`;
/** How long the report may take to leave, ms. */
const FLUSH_MS = 10_000;
let hasStood = false;

addon.outputWrite = (id, bytes, lines) => {
  const dropped = outputWrite(id, bytes, lines);
  if (!hasStood && Buffer.from(bytes).includes(sign)) {
    hasStood = true;
    addon.outputFlush(id, FLUSH_MS);
    process.kill(process.pid, 'SIGSTOP');
  }
  return dropped;
};
