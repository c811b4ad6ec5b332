// SPDX-License-Identifier: Apache-2.0
/** One of several processes that listen at one path at the same moment: told when and where by its parent, forked. */

import { Listener } from '../../src/transport/index.js';

/** `at`: when to try, as `Date.now()`. */
export type StarterOrder =
  | { readonly path: string; readonly at: number }
  /** Stop listening and leave a stale socket. */
  | { readonly leave: true };

let listener: Listener | undefined;

process.on('message', (order: StarterOrder) => {
  if ('leave' in order) {
    listener?.close({ keepPath: true });
    listener = undefined;
    process.send?.('left');
    return;
  }
  while (Date.now() < order.at);
  try {
    listener = Listener.listen(order.path, (fd) => fd.close());
    process.send?.('serves');
  } catch (error) {
    process.send?.((error as { code?: string }).code ?? String(error));
  }
});
process.on('disconnect', () => process.exit());
