// SPDX-License-Identifier: Apache-2.0
/** What the parsers of sections share. */

import { StreamDefect } from './defect.js';
import type { Nesting } from './nested-content.js';
import type { PushedInput } from './pushed-input.js';
import type { SectionTree } from './section-tree.js';

/** What elements before have said of those that follow. */
export interface StreamProperties {
  /** Bytes of guest memory in one page. */
  pageSize: number;
  /** Names of the migration capabilities that both ends must have. */
  capabilities: readonly string[];
  /** Post-copy was announced: memory blocks may say their own page size. */
  postcopy: boolean;
}

export interface SectionContext {
  readonly input: PushedInput;
  readonly tree: SectionTree;
  readonly stream: StreamProperties;
  readonly nesting: Nesting;
}

/** The error for bytes that the stream cannot have at `offset`. */
export function damaged(offset: number, what: string): StreamDefect {
  return new StreamDefect('DEVSTATE_E_CONTENT_DAMAGED', what, offset);
}

/** The error for what a stream may have and this reader does not follow. */
export function unsupported(offset: number, what: string): StreamDefect {
  return new StreamDefect('DEVSTATE_E_CONTENT_UNSUPPORTED', what, offset);
}
