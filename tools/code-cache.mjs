// SPDX-License-Identifier: Apache-2.0
// Keeps what V8 has made of the bundled command line after a server has started and ended (src/cli/script.ts): the functions that
// a start needs, compiled. It fits this version of Node.js alone; others compile the script anew.
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { compile, evaluate } from '../dist/src/cli/script.js';

process.chdir(dirname(dirname(fileURLToPath(import.meta.url))));

const file = resolve('dist/bin/program.cjs');
rmSync(`${file}.cache`, { force: true });
const folder = mkdtempSync(join(tmpdir(), 'devstate-code-cache-'));
const [socket, image] = [join(folder, 'device'), join(folder, 'image')];
const serve = ['serve', 'nvme', '--socket', socket, '--migration-socket', join(folder, 'migration')];

const script = compile(file);
process.on('exit', (code) => {
  rmSync(folder, { recursive: true, force: true });
  if (code === 0) writeFileSync(`${file}.cache`, script.createCachedData());
});
process.argv.splice(1, Infinity, file, ...serve, '--image', image, '--size', '1M');
const look = setInterval(() => {
  if (!existsSync(socket)) return;
  clearInterval(look);
  process.kill(process.pid, 'SIGTERM');
}, 5).unref();
await evaluate(script, file).main();
