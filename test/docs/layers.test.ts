// SPDX-License-Identifier: Apache-2.0
/** The layers of docs/architecture.md are those of the sources: imports point down, and through the index of a folder. */
import { readdirSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import t from 'tap';
import { PACKAGE_ROOT } from '../../src/package-root.js';

const IMPORT = /(?:\bfrom|\bimport)\s*\(?\s*'(\.{1,2}\/[^']+)\.js'/g;

const page = readFileSync(join(PACKAGE_ROOT, 'docs/architecture.md'), 'utf8');
const section = page.slice(page.indexOf('## Layers'));
const block = /```text\n(.*?)```/s.exec(section)?.[1] ?? '';
const rule = section.slice(0, section.indexOf('```'));

/** The line of each folder below src/. */
const lines = new Map<string, number>();
for (const [number, line] of block.split('\n').entries())
  for (const [, folder] of line.matchAll(/src\/([\w-]+)\//g)) lines.set(folder!, number);

/** Modules that are imported by themselves, as the text names them. */
const named = new Set([...rule.matchAll(/`(src\/[\w/-]+\.ts)`/g)].map(([, path]) => path));
const isIndex = (path: string): boolean =>
  /^src\/[\w-]+\/index\.ts$/.test(path) || /^src\/(devices\/.*|vfio\/migration)\/index\.ts$/.test(path);

const sources = (readdirSync(join(PACKAGE_ROOT, 'src'), { recursive: true }) as string[])
  .filter((name) => name.endsWith('.ts'))
  .map((name) => `src/${name}`);

interface Import {
  readonly from: string;
  readonly to: string;
}

const imports = sources.flatMap((from): Import[] => {
  const text = readFileSync(join(PACKAGE_ROOT, from), 'utf8');
  return [...text.matchAll(IMPORT)].map(([, path]) => ({ from, to: `${join(dirname(from), path!)}.ts` }));
});

/** `device` of `src/device/device.ts`; undefined for a module that is in no folder. */
const folderOf = (path: string): string | undefined => /^src\/([\w-]+)\//.exec(path)?.[1];
const between = imports.filter(({ from, to }) => folderOf(from) !== folderOf(to));

t.test('there is something to look at', async (t) => {
  t.ok(lines.size > 10 && imports.length > 1000, `${lines.size} folders, ${imports.length} imports`);
  t.same(
    [...named].filter((path) => !sources.includes(path!)),
    [],
    'what the text names is there',
  );
});

t.test('every folder has its line', async (t) => {
  const folders = new Set(sources.flatMap((path) => folderOf(path) ?? []));
  t.same([...lines.keys()].sort(), [...folders].sort());
});

t.test('imports point down', async (t) => {
  const up = between.filter(({ from, to }) => {
    const [upper, lower] = [folderOf(from), folderOf(to)];
    // A module in no folder is below all of them.
    if (lower === undefined) return false;
    return upper === undefined || (lines.get(lower) ?? 0) <= (lines.get(upper) ?? 0);
  });
  t.same(up, []);
});

t.test('and through the index of a folder, but for those that are named', async (t) => {
  const past = between.filter(({ to }) => folderOf(to) !== undefined && !isIndex(to) && !named.has(to));
  t.same(past, []);
});

t.test('no module imports itself by way of others', async (t) => {
  const targets = new Map<string, string[]>();
  for (const { from, to } of imports) targets.set(from, [...(targets.get(from) ?? []), to]);
  const done = new Set<string>();
  const way: string[] = [];
  const circles: string[] = [];
  const follow = (path: string): void => {
    if (way.includes(path)) circles.push([...way.slice(way.indexOf(path)), path].join(' → '));
    if (way.includes(path) || done.has(path)) return;
    way.push(path);
    for (const to of targets.get(path) ?? []) follow(to);
    way.pop();
    done.add(path);
  };
  for (const path of sources) follow(path);
  t.same(circles, []);
});
