// SPDX-License-Identifier: Apache-2.0
/** The pages of the documentation, and what is in them. */

import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { PACKAGE_ROOT } from '../../src/package-root.js';

export interface Page {
  /** Relative to the repository. */
  readonly path: string;
  readonly text: string;
}

/** README.md, and what is in `docs` and `formats`. */
export function readPages(): Page[] {
  const inFolder = (folder: string) =>
    readdirSync(join(PACKAGE_ROOT, folder))
      .filter((name) => name.endsWith('.md'))
      .map((name) => join(folder, name));
  return ['README.md', ...inFolder('docs'), ...inFolder('formats')].map((path) => ({
    path,
    text: readFileSync(join(PACKAGE_ROOT, path), 'utf8'),
  }));
}

/** Contents of the fenced blocks in one of the languages, in order. */
export function codeBlocks(text: string, ...languages: string[]): string[] {
  return [...text.matchAll(/^```(\w*)\n([\s\S]*?)^```$/gm)]
    .filter((match) => languages.includes(match[1] ?? ''))
    .map((match) => match[2] ?? '');
}

/** The text without its fenced blocks. */
export function prose(text: string): string {
  return text.replace(/^```\w*\n[\s\S]*?^```$/gm, '');
}

/** A heading's anchor, as web hosts of repositories make it. */
export function anchorOf(heading: string): string {
  return heading
    .toLowerCase()
    .replace(/[^\p{L}\p{N}\s_-]/gu, '')
    .replace(/\s/g, '-');
}
