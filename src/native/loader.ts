// SPDX-License-Identifier: Apache-2.0
/** Finds and loads the addon: no install script. One that is missing is compiled when it is first needed. */

import { existsSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { DevstateError } from '../errors.js';
import { PACKAGE_ROOT } from '../package-root.js';
import type { NativeBinding } from './binding.js';
import { ADDON, buildAddon, builtAddons, describeMachine } from './compile.js';
import { platformName } from './platform.js';

/** Where the addon is looked for, in this order. `explicit` (DEVSTATE_ADDON), when set, is the only place. */
export function addonCandidates(root: string, explicit?: string): string[] {
  if (explicit !== undefined && explicit !== '') return [explicit];
  const native = join(root, 'native');
  return [
    join(native, 'build', 'Release', ADDON),
    join(native, 'build', 'Debug', ADDON),
    join(native, 'prebuilds', platformName(), ADDON),
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
  return open(found);
}

function open(path: string): NativeBinding {
  try {
    return createRequire(import.meta.url)(path) as NativeBinding;
  } catch (cause) {
    throw new DevstateError(
      'DEVSTATE_E_ADDON',
      `the native addon ${path} does not load on ${describeMachine()}: ${(cause as Error).message}`,
      { cause },
    );
  }
}

/**
 * The addon of this package: a file that is there and loads, or one that is compiled now.
 * @throws DEVSTATE_E_ADDON that says why none loads and why none can be compiled
 */
export function loadPackageAddon(): NativeBinding {
  const explicit = process.env.DEVSTATE_ADDON;
  if (explicit !== undefined && explicit !== '') return loadAddon([explicit]);
  let unloadable: unknown;
  // The names of what is built on first use need the sources, which a package with a built addon can be without.
  for (const places of [addonCandidates, builtAddons]) {
    for (const path of places(PACKAGE_ROOT).filter((path) => existsSync(path))) {
      try {
        return open(path);
      } catch (error) {
        unloadable ??= error;
      }
    }
  }
  try {
    return open(buildAddon(PACKAGE_ROOT));
  } catch (error) {
    if (unloadable === undefined) throw error;
    const reasons = [unloadable, error].map((reason) => (reason as Error).message);
    throw new DevstateError('DEVSTATE_E_ADDON', reasons.join('; '), { cause: unloadable });
  }
}
