// SPDX-License-Identifier: Apache-2.0
/** Works for as many ms of processor time as each line of its input says, and answers with the line. */

import { createInterface } from 'node:readline';

function worked(since: NodeJS.CpuUsage): number {
  const { user, system } = process.cpuUsage(since);
  return (user + system) / 1000;
}

for await (const line of createInterface(process.stdin)) {
  const since = process.cpuUsage();
  while (worked(since) < Number(line));
  process.stdout.write(`${line}\n`);
}
