// SPDX-License-Identifier: Apache-2.0
// Makes dist/bin/ from dist/src/: the command line as one script, compiled. Node.js finds, reads and links some 600 modules one
// by one, which is a second of work at each start, and a guest waits for a server that starts anew after a crash.
//   --if-newer  does nothing where the bundle is newer than everything it is made of
import { spawnSync } from 'node:child_process';
import { existsSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';

process.chdir(dirname(dirname(fileURLToPath(import.meta.url))));

const OUT = 'dist/bin';
/** What is in the bundle of other packages is under these licences. */
const NOTICES = join(OUT, 'THIRD-PARTY-LICENSES');

/** What decides the bundle beside the sources. */
const INPUTS = ['tools/bundle.mjs', 'tools/code-cache.mjs', 'node_modules/.package-lock.json'];

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
const shared = {
  outdir: OUT,
  outExtension: { '.js': '.cjs' },
  bundle: true,
  platform: 'node',
  format: 'cjs',
  target: 'node20',
  define: { 'import.meta.url': 'devstateUrl' },
  banner: { js: "const devstateUrl = require('node:url').pathToFileURL(__filename).href;" },
  // Less to read at each start. Names stay: stacks are read by people.
  minifyWhitespace: true,
  minifySyntax: true,
  charset: 'ascii',
  metafile: true,
  logLevel: 'warning',
};
const { metafile } = await build({ ...shared, entryPoints: { program: 'dist/src/cli/program.js' } });
// What begins the process takes the program as that script.
const asScript = (build) =>
  build.onResolve({ filter: /^\.\/program\.js$/ }, () => ({
    path: resolve('dist/src/cli/bundled-program.js'),
  }));
await build({
  ...shared,
  entryPoints: { devstate: 'dist/src/cli/main.js' },
  plugins: [{ name: 'program-as-script', setup: asScript }],
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

// Without an addon (yet) the program does not run, and there is nothing to keep.
spawnSync(process.execPath, ['tools/code-cache.mjs'], { stdio: 'ignore', timeout: 60_000 });
