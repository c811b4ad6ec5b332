// SPDX-License-Identifier: Apache-2.0
// Makes dist/bin/ from dist/src/: the command line as a few files. Node.js finds, reads and links some 600 modules one by one,
// which is a second of work at each start, and a guest waits for a server that starts anew after a crash.
//   --if-newer  does nothing where the bundle is newer than everything it is made of
import { existsSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

process.chdir(dirname(dirname(fileURLToPath(import.meta.url))));

const OUT = 'dist/bin';
/** What is in the bundle of other packages is under these licences. */
const NOTICES = join(OUT, 'THIRD-PARTY-LICENSES');

/** What decides the bundle beside the sources. */
const INPUTS = ['tools/bundle.mjs', 'node_modules/.package-lock.json'];

const time = (path) => statSync(path).mtimeMs;
const sources = () =>
  readdirSync('dist/src', { recursive: true })
    .filter((name) => name.endsWith('.js'))
    .map((name) => join('dist/src', name));
const isNewer = () =>
  existsSync(NOTICES) && [...INPUTS, ...sources()].every((path) => time(NOTICES) > time(path));
if (process.argv.includes('--if-newer') && isNewer()) process.exit(0);

const { build } = await import('esbuild');
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
writeFileSync(NOTICES, notices.join(`\n${'-'.repeat(80)}\n\n`));
