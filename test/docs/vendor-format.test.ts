// SPDX-License-Identifier: Apache-2.0
/** The worked example of `docs/formats.md`: a vendor's format beside one that others read, in processes of their own. */

import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import t from 'tap';
import { Register } from '../../docs/examples/adder.js';
import { Client } from '../../src/client/index.js';
import { decodeEnvelope } from '../../src/formats/index.js';
import { PciRegion } from '../../src/wire/index.js';
import { devstate } from '../e2e/harness/devstate-process.js';
import { socketFolder, type Test, until } from '../support/served.js';

const run = promisify(execFile);
const example = (name: string) => fileURLToPath(new URL(`../../docs/examples/${name}.js`, import.meta.url));
const ACME = 'com.example.acme.adder';
const COMMON = 'org.example.adder';

interface Device {
  readonly migrationPath: string;
  readonly client: Client;
}

/** A device server of an example, with the VMM's client. */
async function serve(t: Test, program: string, ...args: string[]): Promise<Device> {
  const folder = socketFolder(t);
  const [path, migrationPath] = [join(folder, 'vmm'), join(folder, 'manager')];
  const server = spawn(process.execPath, [example(program), path, migrationPath, ...args], {
    stdio: 'ignore',
  });
  t.teardown(async () => {
    if (server.exitCode !== null) return;
    const exit = once(server, 'exit');
    server.kill('SIGTERM');
    await exit;
  });
  await until(() => (existsSync(path) && existsSync(migrationPath)) || server.exitCode !== null);
  const client = await Client.connect(path, {});
  t.teardown(() => client.close());
  return { migrationPath, client };
}

async function register(device: Device, at: number): Promise<number> {
  const bytes = new Uint8Array(8);
  await device.client.regionRead(PciRegion.BAR0, at, bytes);
  return Number(new DataView(bytes.buffer).getBigUint64(0, true));
}

function records(file: string): { type: number; optional: boolean; payload: string }[] {
  return decodeEnvelope(readFileSync(file)).records.map(({ type, flags, payload }) => ({
    type,
    optional: (flags & 1) !== 0,
    payload: Buffer.from(payload).toString('hex'),
  }));
}

async function check(source: Device, dest: Device): Promise<{ code: number; stdout: string }> {
  return devstate('check', '--source', source.migrationPath, '--dest', dest.migrationPath, '-o', 'json');
}

t.test('a device of each make, and what they agree on', async (t) => {
  const [acme, other] = [await serve(t, 'vendor-format/serve-acme'), await serve(t, 'serve-adder')];
  const again = await serve(t, 'vendor-format/serve-acme');
  const taken = async (source: Device, dest: Device) => {
    const { code, stdout } = await check(source, dest);
    t.equal(code, 0, stdout);
    return JSON.parse(stdout).negotiation.taken;
  };
  t.equal(await taken(acme, again), `${ACME} 1.0`);
  t.equal(await taken(acme, other), `${COMMON} 1.0`);
  t.equal(await taken(other, acme), `${COMMON} 1.0`);
});

t.test('a device that is pinned to its own format', async (t) => {
  const acme = await serve(t, 'vendor-format/serve-acme', `${ACME}@1`);
  const { code, stdout } = await check(acme, await serve(t, 'serve-adder'));
  t.equal(code, 3);
  t.match(JSON.parse(stdout).reasons, [/no converter leads from the one to the other/]);
});

t.test('a state goes over to the other make and back, with what that does not know', async (t) => {
  const folder = socketFolder(t);
  const file = (name: string) => join(folder, name);
  const acme = await serve(t, 'vendor-format/serve-acme');
  const source = new Uint8Array(8);
  new DataView(source.buffer).setBigUint64(0, 0x1234n, true);
  await acme.client.regionWrite(PciRegion.BAR0, Register.SOURCE, source);
  const saved = await devstate(
    'save',
    '--migration-socket',
    acme.migrationPath,
    '-o',
    file('acme'),
    '--unproven',
  );
  t.equal(saved.code, 0, saved.stderr);

  const tool = example('vendor-format/acme');
  await run(process.execPath, [tool, 'convert', COMMON, file('acme'), file('common')]);
  t.match(await devstate('verify', file('common')), { code: 0 });
  const other = await serve(t, 'serve-adder');
  t.match(await devstate('load', '--migration-socket', other.migrationPath, file('common'), '--unproven'), {
    code: 0,
  });
  t.equal(await register(other, Register.SOURCE), 0x1234);

  await run(process.execPath, [tool, 'convert', ACME, file('common'), file('back')]);
  const byType = (a: { type: number }, b: { type: number }) => a.type - b.type;
  t.same(records(file('back')).sort(byType), records(file('acme')), 'the board is there again');

  const { stdout } = await run(process.execPath, [tool, 'inspect', file('back')]);
  t.match(stdout, /board = "A-7".*image .*total = 0.*Status: +intact and complete/s);
  const refused = await run(process.execPath, [tool, 'convert', 'org.example.other', file('acme'), file('x')])
    .then(() => '')
    .catch((error: { stderr: string }) => error.stderr);
  t.match(refused, /no way leads from/);
});
