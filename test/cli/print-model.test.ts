// SPDX-License-Identifier: Apache-2.0
/** `devstate serve nvme --print-model-json`: what a manager compares before it starts anything. */

import { existsSync, mkdtempSync, readdirSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { devstate } from '../e2e/harness/devstate-process.js';

t.setTimeout(900_000);

const folder = mkdtempSync(join(tmpdir(), 'model-'));
t.teardown(() => rmSync(folder, { recursive: true, force: true }));

interface Param {
  type: 'bool' | 'int' | 'str';
  description: string;
  init_value: boolean | number | string;
  allowed_values?: (boolean | number | string)[];
  maximum_length?: number;
}

async function print(...args: string[]): Promise<{ text: string; params: Record<string, Param> }> {
  const { code, stdout, stderr } = await devstate('serve', 'nvme', '--print-model-json', ...args);
  if (code !== 0) throw new Error(`${code}: ${stderr}`);
  const { models, ...rest } = JSON.parse(stdout);
  if (Object.keys(rest).length > 0) throw new Error('more than the models');
  return { text: stdout, params: models['devstate.org/nvme'].params };
}

const values = (params: Record<string, Param>): Record<string, unknown> =>
  Object.fromEntries(Object.entries(params).map(([name, { init_value }]) => [name, init_value]));

t.test('the model', async (t) => {
  const { params, text } = await print('--size', '1M');
  t.match(text, /^\{\n {2}"models": \{\n {4}"devstate\.org\/nvme": \{/, 'for people too');
  t.strictSame(values(params), {
    queues: 4,
    msix_vectors: 5,
    queue_entries: 1024,
    mdts: 7,
    lba_size: 512,
    namespace_size: 2 ** 20,
    serial: 'DEVSTATE0001',
    model_number: 'devstate NVMe',
    firmware: '1.0',
  });
  for (const [name, param] of Object.entries(params)) {
    t.equal(typeof param.init_value, { bool: 'boolean', int: 'number', str: 'string' }[param.type], name);
    t.ok(param.description.length > 0, name);
    t.notOk('off_value' in param, 'none can be off');
    if (param.type === 'str') t.ok((param.maximum_length ?? 0) >= String(param.init_value).length, name);
    else {
      const allowed = param.allowed_values ?? [];
      const isIn = (one: unknown): boolean => {
        const [from, to] = String(one).split('-').map(Number) as [number, number?];
        return Number(param.init_value) >= from && Number(param.init_value) <= (to ?? from);
      };
      t.ok(allowed.some(isIn), `${name} is one of ${allowed}`);
    }
  }
  t.strictSame(params.queues?.allowed_values, ['1-255']);
  t.strictSame(params.lba_size?.allowed_values, [512, 4096]);
  t.strictSame(params.serial?.maximum_length, 20);
});

t.test('both vendors give the same', async (t) => {
  for (const args of [
    ['--size', '1M'],
    [
      '--size',
      '1G',
      '--param',
      'queues=16',
      '--param',
      'mdts=5',
      '--param',
      'serial=A B',
      '--param',
      'lba_size=4096',
    ],
  ]) {
    const [alder, birch] = await Promise.all(
      ['alder', 'birch'].map((vendor) => print('--vendor', vendor, ...args)),
    );
    t.equal(birch?.text, alder?.text, args.join(' '));
  }
});

t.test('with the values that a server would have', async (t) => {
  const given = await print(
    '--size',
    '2M',
    '--param',
    'queues=16',
    '--param',
    'serial=A B',
    '--param',
    'lba_size=4096',
  );
  t.match(values(given.params), {
    queues: 16,
    msix_vectors: 17,
    serial: 'A B',
    lba_size: 4096,
    namespace_size: 2 ** 21,
  });
  const image = join(folder, 'image');
  writeFileSync(image, '');
  truncateSync(image, 3 * 2 ** 20);
  t.equal(
    (await print('--image', image)).params.namespace_size?.init_value,
    3 * 2 ** 20,
    'that of the image',
  );
  const missing = join(folder, 'missing');
  t.equal(
    (await print('--image', missing)).params.namespace_size?.init_value,
    64 * 2 ** 20,
    'that of a new image',
  );
  t.notOk(existsSync(missing), 'which is not created');
  await print('--image', image, '--socket', join(folder, 's'), '--migration-socket', join(folder, 'm'));
  t.strictSame(readdirSync(folder), ['image'], 'nothing is served');
});

t.test('what the model does not allow', async (t) => {
  for (const [param, says] of [
    ['queues=256', /queues=256 is not an integer from 1 to 255/],
    ['queues=0', /queues=0/],
    ['lba_size=1024', /one of 512, 4096/],
    ['mdts=two', /mdts=two/],
    [`serial=${'x'.repeat(21)}`, /1 to 20/],
    ['wings=2', /no parameter "wings": choose among queues/],
  ] as const) {
    const { code, stdout, stderr } = await devstate('serve', 'nvme', '--print-model-json', '--param', param);
    t.equal(code, 2, param);
    t.equal(stdout, '');
    t.match(stderr, says);
    t.match(stderr, /DEVSTATE_E_MODEL_PARAMETER/);
  }
});
