// SPDX-License-Identifier: Apache-2.0
/**
 * The program as the bundle has it: one script, and beside it what V8 made of that when the bundle was built, so that a start
 * compiles nothing. Another version of Node.js refuses the latter, and compiles the script instead.
 */

import { readFileSync } from 'node:fs';
import { createRequire, Module } from 'node:module';
import { dirname } from 'node:path';
import { constants, Script } from 'node:vm';

/** What `program.ts` exports. */
interface Program {
  main(): Promise<void>;
}

/** @param file path of the script, in ASCII (tools/bundle.mjs). What V8 made of it is in a file beside, `.cache` appended. */
export function compile(file: string): Script {
  return new Script(Module.wrap(readFileSync(file, 'latin1')), {
    filename: file,
    cachedData: cacheOf(file),
    importModuleDynamically: constants.USE_MAIN_CONTEXT_DEFAULT_LOADER,
  });
}

/** Runs the script as Node.js runs a CommonJS module. */
export function evaluate(script: Script, file: string): Program {
  const module = { exports: {} as Program };
  script.runInThisContext()(module.exports, createRequire(file), module, file, dirname(file));
  return module.exports;
}

function cacheOf(file: string): Buffer | undefined {
  try {
    return readFileSync(`${file}.cache`);
  } catch {
    return undefined;
  }
}
