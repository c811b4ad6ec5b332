// SPDX-License-Identifier: Apache-2.0
/** How formats were agreed on, as rows for people. */

import type { NegotiationSummary } from '../operations/index.js';

/** The format taken, under `key`, and why; then every other candidate and why not. */
export function negotiationRows(summary: NegotiationSummary, key: string): [key: string, value: string][] {
  const { taken, reason, features, candidates } = summary;
  const compressed = features.length === 0 ? '' : `, compressed (${features.join(', ')})`;
  return [
    [key, taken === null ? (candidates.length > 0 ? 'none' : 'format unknown') : `${taken}${compressed}`],
    ['  because', reason],
    ...candidates
      .filter((candidate) => !candidate.taken)
      .map((candidate): [string, string] => ['  not', `${candidate.name}: ${candidate.reason}`]),
  ];
}
