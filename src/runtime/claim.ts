// SPDX-License-Identifier: Apache-2.0

import type { FormatChoice } from './format-choice.js';

/**
 * What tells one user of a device's migration from another: a connection, or the process that replaces the server. Compared
 * by identity; the migration engine lets the one that drives continue, and refuses the others.
 */
export class Claim {
  /** The formats that its connection has selected. */
  readonly choice: FormatChoice = {};
}
