// SPDX-License-Identifier: Apache-2.0
/** What a file is and holds: our own blobs, and what others have written. */

import { formatDescriptions } from '../devices/catalogue.js';
import { FOREIGN_KINDS, type Inspection } from '../formats/index.js';
import { DirectoryExtraction, type ExtractedFile } from './files/extraction.js';
import type { InputFile, ReadProgress } from './files/input.js';
import { inspectLayers } from './layers/inspect-layers.js';

export interface InspectFileOptions {
  /** A directory for what is found inside. Default: nothing is written. */
  readonly extractTo?: string | undefined;
  readonly progress?: ReadProgress | undefined;
  /** Most bytes that are decompressed. Default: 64 times what was read, and at least 256 MiB. */
  readonly limit?: number | undefined;
}

export interface InspectedFile {
  readonly inspection: Inspection;
  readonly extracted: readonly ExtractedFile[];
}

/** @throws DEVSTATE_E_INPUT, DEVSTATE_E_OUTPUT; what is wrong with the content is in the inspection */
export async function inspectFile(
  input: InputFile,
  { extractTo, progress, limit }: InspectFileOptions = {},
): Promise<InspectedFile> {
  const extraction = extractTo === undefined ? undefined : new DirectoryExtraction(extractTo);
  const inspection = await inspectLayers(input.chunks(progress), {
    formats: formatDescriptions,
    kinds: FOREIGN_KINDS,
    file: input.content,
    extraction,
    limit,
  });
  return { inspection, extracted: extraction?.files ?? [] };
}
