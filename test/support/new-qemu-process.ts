// SPDX-License-Identifier: Apache-2.0
/**
 * A process that an operation starts as a QEMU, for a test that plays this QEMU itself: tells the test its arguments, and ends
 * when the test says so. What it is to have as a program: `node new-qemu-process.js SOCKET -qmp …`.
 */
import { connect } from 'node:net';

const [, , socket = '', ...args] = process.argv;
const test = connect(socket, () => test.write(`${JSON.stringify(args)}\n`));
test.on('error', () => process.exit(1));
test.on('close', () => process.exit(1));
test.resume();
