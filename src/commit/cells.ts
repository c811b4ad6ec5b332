// SPDX-License-Identifier: Apache-2.0
/** Groups of cells that the tables of both ends have in common: each says why an input leads to nothing. */

import type { Base, RefusalCode, Step } from './machine.js';

type Cell<S> = (
  state: S,
) => Step<S, { readonly type: 'stop' } | { readonly type: 'refuse'; readonly code: RefusalCode }>;

/** A part of a row: one cell for each kind of input. */
function each<S, K extends string>(cell: Cell<S>, ...kinds: readonly K[]): { readonly [P in K]: Cell<S> } {
  return Object.fromEntries(kinds.map((kind) => [kind, cell])) as { [P in K]: Cell<S> };
}

/** @typeParam S the states of one end */
export function commonCells<S extends Base>() {
  const refusing =
    (code: RefusalCode): Cell<S> =>
    (state) => ({ state, outputs: [{ type: 'refuse', code }] });
  /** Nothing is to be done, and nothing is wrong. */
  const quiet: Cell<S> = (state) => ({ state, outputs: [] });
  return {
    quiet,
    outOfOrder: refusing('out-of-order'),
    contradiction: refusing('contradiction'),
    tooLate: refusing('too-late'),
    vmGone: refusing('vm-gone'),
    nothingToDecide: refusing('nothing-to-decide'),
    /** The VM runs although this end has no right to it: another program has sent `cont`. */
    stopVm: ((state) => ({
      state,
      outputs: [{ type: 'stop' }, { type: 'refuse', code: 'no-right' }],
    })) satisfies Cell<S>,
    /** The connection is only noted: what there is to say is said by the repeat timer, or as an answer. */
    link: {
      connected: ((state) => ({ state: { ...state, link: true }, outputs: [] })) satisfies Cell<S>,
      disconnected: ((state) => ({ state: { ...state, link: false }, outputs: [] })) satisfies Cell<S>,
    },
    /** A record of an earlier state, which another way has overtaken. */
    nothingWritten: each(quiet, 'persisted', 'persistFailed'),
    /** Timers that earlier states have set. */
    noTimers: each(quiet, 'patience', 'repeat', 'witness'),
    /** An answer that is not waited for any more: the right is another one by now, or given up. */
    noAnswer: each(quiet, 'won', 'held', 'unreachable'),
    vmIgnored: each(quiet, 'vmRuns', 'vmRunFailed', 'vmStopped', 'vmGone'),
    noOperator: each(refusing('nothing-to-decide'), 'here', 'elsewhere'),
  };
}
