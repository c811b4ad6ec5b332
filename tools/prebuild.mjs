// SPDX-License-Identifier: Apache-2.0
// What a package has besides its files in the repository: the addon for this machine's platform, and the headers with
// which it is compiled on another. After tools/prepare.mjs.
import { chmodSync, cpSync, existsSync, mkdirSync, readFileSync, rmSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { compileAddon } from '../dist/src/native/compile.js';
import { platformName } from '../dist/src/native/platform.js';

const root = dirname(dirname(fileURLToPath(import.meta.url)));
process.chdir(root);

// From Node.js (MIT) and libuv (MIT): C declarations with a stable ABI.
const HEADERS = ['js_native_api.h', 'js_native_api_types.h', 'node_api.h', 'node_api_types.h', 'uv.h', 'uv'];
const installed = join(dirname(dirname(process.execPath)), 'include', 'node');
if (!existsSync(join(installed, 'node_api.h'))) {
  process.stderr.write(
    `error: prebuild: no headers of Node.js in ${installed}; use a Node.js that comes with them\n`,
  );
  process.exit(1);
}
rmSync('native/include', { recursive: true, force: true });
mkdirSync('native/include', { recursive: true });
for (const name of HEADERS) cpSync(join(installed, name), join('native/include', name), { recursive: true });
// Their licence goes with them.
const licence = [join(dirname(dirname(process.execPath)), 'LICENSE'), '/usr/share/doc/nodejs/copyright'].find(
  existsSync,
);
if (licence !== undefined) cpSync(licence, 'native/include/LICENSE');

rmSync('native/prebuilds', { recursive: true, force: true });
compileAddon(root, join(root, 'native/prebuilds', platformName(), 'devstate.node'));

const { bin } = JSON.parse(readFileSync('package.json', 'utf8'));
for (const path of Object.values(bin)) chmodSync(path, 0o755);
