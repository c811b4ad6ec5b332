// SPDX-License-Identifier: Apache-2.0
/**
 * QEMU's cpr-transfer: a VM goes to a new QEMU on the same host, which takes over its memory as it is. Both need
 * `-machine aux-ram-share=on` and shared memory; the new one, `-S` and the arguments of {@link cprIncomingArguments}.
 * It has no monitor before the old one has begun.
 */
import type { QmpClient } from '../qmp.js';

/** The sockets at which the new QEMU listens: for the list of descriptors, and then for the migration. */
export interface CprSockets {
  readonly cpr: string;
  readonly main: string;
}

function channel(type: 'main' | 'cpr', path: string) {
  return { 'channel-type': type, addr: { transport: 'socket', type: 'unix', path } };
}

/** What the new QEMU is started with. */
export function cprIncomingArguments({ cpr, main }: CprSockets): string[] {
  const channels = [channel('main', main), channel('cpr', cpr)];
  return channels.flatMap((one) => ['-incoming', JSON.stringify(one)]);
}

/** Begins the transfer to a QEMU that listens; it goes on as a migration does. */
export async function startCprTransfer(
  qmp: QmpClient,
  { cpr, main }: CprSockets,
  { signal }: { readonly signal?: AbortSignal | undefined } = {},
): Promise<void> {
  await qmp.execute('migrate-set-parameters', { arguments: { mode: 'cpr-transfer' }, signal });
  const channels = [channel('main', main), channel('cpr', cpr)];
  await qmp.execute('migrate', { arguments: { channels }, signal });
}
