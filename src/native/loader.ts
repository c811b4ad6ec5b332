// SPDX-License-Identifier: Apache-2.0
/** Finds and loads the addon: no install script, no search outside the package. */

import { existsSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { DevstateError } from '../errors.js';
import type { NativeBinding } from './binding.js';

const ADDON = 'devstate.node';

/** The folder of the package that holds `file`: the nearest one up with a package.json. */
function packageRoot(file: string): string {
  for (let folder = dirname(file); ; folder = dirname(folder)) {
    if (existsSync(join(folder, 'package.json'))) return folder;
    if (folder === dirname(folder)) return dirname(file);
  }
}

/** Where the addon is looked for, in this order. `explicit` (DEVSTATE_ADDON), when set, is the only place. */
export function addonCandidates(root: string, explicit?: string): string[] {
  if (explicit !== undefined && explicit !== '') return [explicit];
  const native = join(root, 'native');
  return [
    join(native, 'prebuilds', `${process.platform}-${process.arch}`, ADDON),
    join(native, 'build', 'Release', ADDON),
    join(native, 'build', 'Debug', ADDON),
  ];
}

/**
 * Loads the first addon that exists.
 * @throws DEVSTATE_E_ADDON when there is none or it does not load.
 */
export function loadAddon(candidates: readonly string[]): NativeBinding {
  const found = candidates.find((path) => existsSync(path));
  if (found === undefined) {
    throw new DevstateError(
      'DEVSTATE_E_ADDON',
      `the native addon is not built (looked for ${candidates.join(', ')}); run "node tools/prepare.mjs" in the ` +
        'package, or set DEVSTATE_ADDON to the path of devstate.node',
    );
  }
  try {
    return createRequire(import.meta.url)(found) as NativeBinding;
  } catch (cause) {
    throw new DevstateError(
      'DEVSTATE_E_ADDON',
      `the native addon ${found} does not load: ${(cause as Error).message}; ` +
        'build it for this Node.js with "node tools/prepare.mjs"',
      { cause },
    );
  }
}

/** The addon of this package. */
export function loadPackageAddon(): NativeBinding {
  const root = packageRoot(fileURLToPath(import.meta.url));
  return loadAddon(addonCandidates(root, process.env.DEVSTATE_ADDON));
}
