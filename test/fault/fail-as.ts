// SPDX-License-Identifier: Apache-2.0
/** The ways in which a successor of the fault tests fails. */

/** @param action `refuse`, `crash`, `kill`, `hang`, `murder` (of the process VICTIM, or of who started this one) or `nothing` */
export async function failAs(action: string): Promise<void> {
  switch (action) {
    case 'refuse':
      throw new Error('the successor does not want to');
    case 'crash':
      process.exit(7);
      break;
    case 'kill':
    case 'hang':
      process.kill(process.pid, action === 'kill' ? 'SIGKILL' : 'SIGSTOP');
      // The signal arrives within this turn or the next.
      await new Promise((resolve) => setTimeout(resolve, 60_000));
      break;
    case 'murder':
      process.kill(Number(process.env.VICTIM ?? process.ppid), 'SIGKILL');
      break;
  }
}
