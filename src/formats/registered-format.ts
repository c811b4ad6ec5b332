// SPDX-License-Identifier: Apache-2.0

import type { Uuid } from './uuid.js';

/** An entry of the registry. */
export interface RegisteredFormat {
  uuid: Uuid;
  /** Reverse domain name; unique. */
  name: string;
  /** `standard`: any vendor may implement it. `vendor`: its payload is its vendor's affair. */
  kind: 'standard' | 'vendor';
  /** URIs of the device models whose state it can hold. */
  models: readonly string[];
  /** Versions that exist, `major.minor`, oldest first. */
  versions: readonly string[];
  /** Path of the payload schema within `formats/`; null if the payload is opaque. */
  schema: string | null;
  /** `experimental`: may change without a new version. `stable`: never. */
  stability: 'experimental' | 'stable';
}
