// SPDX-License-Identifier: Apache-2.0
/** Fails in the way that its argument says, for the harness's own test: a failure in a guest must be one of the test. */
import assert from 'node:assert/strict';
import { check, finish } from './report.js';

await check('one that passes', () => {});
switch (process.argv[2]) {
  case 'check':
    await check('one that does not', () => assert.equal(1, 2));
    break;
  case 'crash':
    process.abort();
    break;
  case 'exit':
    process.exit(0);
}
finish();
