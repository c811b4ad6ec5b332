// SPDX-License-Identifier: Apache-2.0
/** Holds a machine to a table in words. */

import type { Test } from 'tap';
import type {
  DestinationInput,
  DestinationState,
  DestinationStep,
  SourceInput,
  SourceState,
  SourceStep,
} from '../../src/commit/index.js';
import { cell } from './states.js';

/** State → kind of input → what it leads to. */
function parse(table: string): Map<string, Map<string, string>> {
  const rows = new Map<string, Map<string, string>>();
  let row = new Map<string, string>();
  for (const line of table.split('\n').filter((line) => line !== '')) {
    const found = /^ {2}(\w+) +(.+)$/.exec(line);
    if (found === null) {
      row = new Map();
      rows.set(line, row);
    } else row.set(found[1]!, found[2]!);
  }
  return rows;
}

export function holdToTable<
  S extends SourceState | DestinationState,
  I extends SourceInput | DestinationInput,
>(
  t: Test,
  table: string,
  states: Readonly<Record<string, S>>,
  inputs: (state: S) => Readonly<Record<string, I>>,
  step: (state: S, input: I) => SourceStep | DestinationStep,
): void {
  const rows = parse(table);
  t.same([...rows.keys()], Object.keys(states), 'the states of the table are those that are tried');
  for (const [name, state] of Object.entries(states)) {
    const kept = JSON.stringify(state);
    for (const [kind, input] of Object.entries(inputs(state))) {
      t.equal(cell(state, step(state, input)), rows.get(name)?.get(kind), `${name} × ${kind}`);
      t.equal(JSON.stringify(state), kept, 'a step changes no state');
    }
  }
}
