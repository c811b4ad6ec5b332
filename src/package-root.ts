// SPDX-License-Identifier: Apache-2.0
/** Where the package is: this module may be in a file of its own, or in the bundle that is the command line. */

import { existsSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

/** The folder of the package that holds `file`: the nearest one up with a package.json. */
function packageOf(file: string): string {
  for (let folder = dirname(file); ; folder = dirname(folder)) {
    if (existsSync(join(folder, 'package.json'))) return folder;
    if (folder === dirname(folder)) return dirname(file);
  }
}

export const PACKAGE_ROOT = packageOf(fileURLToPath(import.meta.url));
