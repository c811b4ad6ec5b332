// SPDX-License-Identifier: Apache-2.0
/** The device at the top of `src/device/index.ts`: compiles as it stands there, is served, keeps its state. */

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import ts from 'typescript';
import { Client } from '../../src/client/index.js';
import { PACKAGE_ROOT } from '../../src/package-root.js';
import { PciRegion } from '../../src/wire/index.js';
import { devstate } from '../e2e/harness/devstate-process.js';
import { socketFolder, until } from '../support/served.js';

const IMPORTS = `import { type Bar, type Device, PciConfigSpace, RecordFormat } from 'devstate/device';
import { serve } from 'devstate/runtime';
`;

/** The example: the lines of the first docstring that are indented as code. */
function example(): string {
  const source = readFileSync(join(PACKAGE_ROOT, 'src/device/index.ts'), 'utf8');
  const docstring = source.slice(0, source.indexOf('*/'));
  const code = [...docstring.matchAll(/^ \* {5}(.*)$/gm)].map(([, line]) => line);
  return `${IMPORTS}${code.join('\n')}\n`;
}

t.test('it is TypeScript', async (t) => {
  const file = join(t.testdir({ 'usage.ts': example() }), 'usage.ts');
  const { config } = ts.readConfigFile(join(PACKAGE_ROOT, 'tsconfig.json'), ts.sys.readFile);
  const { options } = ts.parseJsonConfigFileContent(
    { ...config, files: [file], include: [] },
    ts.sys,
    PACKAGE_ROOT,
  );
  const program = ts.createProgram([file], {
    ...options,
    noEmit: true,
    incremental: false,
    rootDir: PACKAGE_ROOT,
  });
  const problems = ts.getPreEmitDiagnostics(program, program.getSourceFile(file));
  t.strictSame(
    problems.map(({ messageText }) => ts.flattenDiagnosticMessageText(messageText, ' ')),
    [],
  );
});

t.test('and a device', async (t) => {
  const program = join(t.testdir(), 'usage.mjs');
  const { outputText } = ts.transpileModule(example(), {
    compilerOptions: { target: ts.ScriptTarget.ES2022, module: ts.ModuleKind.ES2022 },
  });
  writeFileSync(program, outputText);
  const folder = socketFolder(t);
  const server = spawn(process.execPath, [program], { cwd: folder, stdio: ['ignore', 'ignore', 'inherit'] });
  t.teardown(async () => {
    const exit = once(server, 'exit');
    if (server.exitCode === null && server.kill()) await exit;
  });
  const [vmm, manager] = [join(folder, 'scratch.sock'), join(folder, 'scratch.mig')];
  await until(() => (existsSync(vmm) && existsSync(manager)) || server.exitCode !== null);
  const client = await Client.connect(vmm, {});
  t.teardown(() => client.close());
  const register = async (): Promise<string> => {
    const bytes = new Uint8Array(4);
    await client.regionRead(PciRegion.BAR0, 0x10, bytes);
    return Buffer.from(bytes).toString('hex');
  };
  await client.regionWrite(PciRegion.BAR0, 0x10, Uint8Array.of(1, 2, 3, 4));
  t.equal(await register(), '01020304');
  const file = join(folder, 'state');
  const options = ['--migration-socket', manager, '--unproven'];
  t.match(await devstate('save', ...options, '-o', file, '--then', 'run'), { code: 0 });
  await client.reset();
  t.equal(await register(), '00000000');
  t.match(await devstate('load', ...options, file), { code: 0 });
  t.equal(await register(), '01020304');
});
