// SPDX-License-Identifier: Apache-2.0
// The addon, compiled with AddressSanitizer and UndefinedBehaviorSanitizer, for `run-tests.mjs --sanitized`.
import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, isAbsolute, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const ADDON = join(root, 'native/build/Sanitized/devstate.node');

const FLAGS = [
  '-O1',
  '-g',
  '-fno-omit-frame-pointer',
  '-fsanitize=address,undefined',
  '-fno-sanitize-recover=undefined',
];

/** Folders and files below test/ that call the addon's functions, and start few processes, which are slow like this. */
export const SANITIZED = [
  'native',
  ...['fd', 'listener', 'message-socket', 'request-table', 'sending', 'stream-socket'].map(
    (name) => `transport/${name}`,
  ),
];

/** The runtime that a process must load before all else, as Node.js itself is not linked with it. */
function runtimeOf(compiler) {
  const { stdout } = spawnSync(compiler, ['-print-file-name=libasan.so'], { encoding: 'utf8' });
  const path = stdout?.trim() ?? '';
  return isAbsolute(path) && existsSync(path) ? path : undefined;
}

function newestSource() {
  const folder = join(root, 'native/src');
  return Math.max(...readdirSync(folder).map((name) => statSync(join(folder, name)).mtimeMs));
}

/**
 * Compiles the addon, unless it is newer than its sources.
 * @returns `missing`, a sentence, where the compiler has no sanitizers; else `env`, for processes that use the addon, and
 * `reports`, which gives what the sanitizers have said, a text for each process, and removes it
 */
export async function sanitizedAddon() {
  const { compileAddon, findCompiler } = await import('../dist/src/native/compile.js');
  const compiler = findCompiler();
  const runtime = compiler === undefined ? undefined : runtimeOf(compiler);
  if (runtime === undefined) {
    const what = compiler === undefined ? 'there is no C++ compiler' : `${compiler} has no libasan.so`;
    return { missing: `the addon under sanitizers: ${what}; install GCC with its sanitizers` };
  }
  if (!existsSync(ADDON) || statSync(ADDON).mtimeMs < newestSource()) compileAddon(root, ADDON, FLAGS);
  const folder = mkdtempSync(join(tmpdir(), 'devstate-sanitizers-'));
  const log = `log_path=${join(folder, 'report')}`;
  return {
    env: {
      DEVSTATE_ADDON: ADDON,
      LD_PRELOAD: runtime,
      // Node.js frees little of what it allocates before it ends. SIGBUS is the addon's, SIGSEGV is V8's own.
      ASAN_OPTIONS: `detect_leaks=0:handle_sigbus=0:handle_segv=0:${log}`,
      UBSAN_OPTIONS: `print_stacktrace=1:${log}`,
    },
    reports() {
      const reports = readdirSync(folder).map((name) => readFileSync(join(folder, name), 'utf8'));
      rmSync(folder, { recursive: true });
      return reports;
    },
  };
}
