// SPDX-License-Identifier: Apache-2.0
/** What the documentation refers to is there: files, headings, commands, options, dependencies. */

import { existsSync, readFileSync } from 'node:fs';
import { dirname, join, normalize } from 'node:path';
import t from 'tap';
import { PACKAGE_ROOT } from '../../src/package-root.js';
import { devstate } from '../e2e/harness/devstate-process.js';
import { anchorOf, codeBlocks, prose, readPages } from './pages.js';

// A process for the help of each command.
t.setTimeout(900_000);

const pages = readPages();

t.test('relative links', async (t) => {
  let links = 0;
  for (const { path, text } of pages) {
    for (const [, target = ''] of prose(text).matchAll(/\]\(([^)\s]+)\)/g)) {
      if (/^[a-z]+:/.test(target)) continue;
      const [file = '', anchor] = target.split('#');
      const linked = file === '' ? path : normalize(join(dirname(path), file));
      t.ok(existsSync(join(PACKAGE_ROOT, linked)), `${path}: ${target}`);
      links++;
      if (anchor === undefined) continue;
      const headings = prose(readFileSync(join(PACKAGE_ROOT, linked), 'utf8')).matchAll(/^#+ (.*)$/gm);
      t.ok([...headings].map((match) => anchorOf(match[1] ?? '')).includes(anchor), `${path}: ${target}`);
    }
  }
  t.ok(links > 20, `${links} links were looked at`);
});

/** Options that `devstate … --help` lists, by command. */
async function optionsOf(command: string): Promise<Set<string>> {
  const { code, stdout } = await devstate(...command.split(' '), '--help');
  if (code !== 0) throw new Error(`devstate ${command} --help ends with ${code}`);
  return new Set([...stdout.matchAll(/^ +(?:(-\w), )?(--[\w-]+)/gm)].flatMap((match) => match.slice(1, 3)));
}

/** Each `devstate …` command line of a page's blocks: the command's words and its arguments. */
function commandLines(text: string): string[][] {
  return codeBlocks(text, 'sh', 'text').flatMap((block) =>
    // A command line behind ` -- ` is one of its own.
    [
      ...block
        .replaceAll(/\\\n\s*/g, ' ')
        .replaceAll(' -- ', '\n')
        .matchAll(/^(?:\$ )?devstate (.*)$/gm),
    ].map((match) =>
      (match[1] ?? '')
        .replace(/ (&|2?>|\|).*$/, '')
        .trim()
        .split(/\s+/),
    ),
  );
}

t.test('commands and their options', async (t) => {
  const known = new Map<string, Set<string>>();
  for (const command of [
    'serve nvme',
    'serve sample',
    'serve counter',
    'run',
    'check',
    'migrate',
    'upgrade',
    'recover',
    'relay',
    'relay-switch',
    'cpr',
    'save',
    'load',
    'inspect',
    'verify',
    'diff',
    'convert',
    'formats',
    'wrap',
    'unwrap',
    'vfio list',
    'vfio hold',
    'vfio lend',
    'vfio return',
    'vfio status',
    'vfio transfer',
  ]) {
    known.set(command, await optionsOf(command));
  }
  let commands = 0;
  for (const { path, text } of pages) {
    for (const words of commandLines(text)) {
      const command = words.slice(0, ['serve', 'vfio'].includes(words[0] ?? '') ? 2 : 1).join(' ');
      const line = `${path}: devstate ${words.join(' ')}`;
      const options = known.get(command);
      t.ok(options !== undefined, line);
      for (const word of words) if (/^-./.test(word)) t.ok(options?.has(word), `${line}: ${word}`);
      commands++;
    }
  }
  t.ok(commands > 10, `${commands} command lines were looked at`);

  // These pages explain every option of their commands.
  for (const [path, commands] of [
    ['docs/migrate.md', ['serve nvme', 'migrate']],
    ['docs/upgrade.md', ['upgrade']],
    ['docs/relay.md', ['relay', 'relay-switch']],
    [
      'docs/vfio.md',
      ['cpr', ...['list', 'hold', 'lend', 'return', 'status', 'transfer'].map((verb) => `vfio ${verb}`)],
    ],
    ['docs/conformance.md', ['serve sample']],
    ['docs/inspect.md', ['save', 'load', 'check', 'inspect', 'convert', 'wrap']],
  ] as const) {
    const text = pages.find((page) => page.path === path)?.text ?? '';
    for (const command of commands) {
      for (const option of known.get(command) ?? []) {
        if (option === undefined || ['-h', '--help', '--output'].includes(option)) continue;
        t.ok(text.includes(`\`${option}`), `${path}: ${command} ${option}`);
      }
    }
  }
});

t.test('dependencies', async (t) => {
  const text = pages.find(({ path }) => path === 'docs/dependencies.md')?.text ?? '';
  const documented = [...text.matchAll(/^\| `([^`]+)`/gm)].map((match) => match[1]);
  const { dependencies, devDependencies } = JSON.parse(
    readFileSync(join(PACKAGE_ROOT, 'package.json'), 'utf8'),
  ) as Record<string, Record<string, string>>;
  t.same(documented.sort(), Object.keys({ ...dependencies, ...devDependencies }).sort());
});
