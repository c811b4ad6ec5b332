// SPDX-License-Identifier: Apache-2.0
// Makes dist/bin/ from dist/src/: the command line as a few files. Of some 600 modules, which Node.js would find, read and link
// one by one, a command needs half: a second of work at each start, and a server that starts anew has a guest waiting.
//   --if-newer  does nothing where the bundle is newer than everything it is made of
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { build } from 'esbuild';

process.chdir(dirname(dirname(fileURLToPath(import.meta.url))));

const OUT = 'dist/bin';
/** What is in the bundle of other packages is under these licences. */
const NOTICES = join(OUT, 'THIRD-PARTY-LICENSES');

const time = (path) => statSync(path).mtimeMs;
const sources = () => readdirSync('dist/src', { recursive: true }).filter((name) => name.endsWith('.js'));
const isNewer = () =>
  existsSync(NOTICES) &&
  time(NOTICES) > time('node_modules/.package-lock.json') &&
  sources().every((name) => time(NOTICES) > time(join('dist/src', name)));
if (process.argv.includes('--if-newer') && isNewer()) process.exit(0);

rmSync(OUT, { recursive: true, force: true });
const { metafile } = await build({
  entryPoints: { devstate: 'dist/src/cli/main.js' },
  outdir: OUT,
  bundle: true,
  splitting: true,
  platform: 'node',
  format: 'esm',
  target: 'node20',
  chunkNames: '[name]-[hash]',
  // CommonJS packages ask for Node.js's modules by `require`.
  banner: {
    js: "import { createRequire as devstateRequire } from 'node:module'; const require = devstateRequire(import.meta.url);",
  },
  metafile: true,
  logLevel: 'warning',
});

/** `node_modules/pino` or `node_modules/@scope/name`, nested ones too. */
const packageOf = (path) => /^(.*node_modules\/(?:@[^/]+\/)?[^/]+)\//.exec(path)?.[1];
const packages = [...new Set(Object.keys(metafile.inputs).map(packageOf))].filter(
  (path) => path !== undefined,
);
const notices = packages.sort().map((path) => {
  const { name, version, license } = JSON.parse(readFileSync(join(path, 'package.json'), 'utf8'));
  const file = readdirSync(path).find((entry) => /^licen[cs]e/i.test(entry));
  if (file === undefined) throw new Error(`${path} has no licence file`);
  return `${name} ${version} (${license})\n\n${readFileSync(join(path, file), 'utf8').trim()}\n`;
});
mkdirSync(OUT, { recursive: true });
writeFileSync(NOTICES, notices.join(`\n${'-'.repeat(80)}\n\n`));
