// SPDX-License-Identifier: Apache-2.0
/** Counts the turns that others have while something works. */

/** Does `work`. @returns how many turns others had meanwhile */
export async function turnsOf(work: () => void | Promise<void>): Promise<number> {
  let turns = 0;
  let next: NodeJS.Immediate;
  const turn = (): void => {
    turns++;
    next = setImmediate(turn);
  };
  next = setImmediate(turn);
  await work();
  clearImmediate(next);
  return turns;
}
