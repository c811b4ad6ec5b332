// SPDX-License-Identifier: Apache-2.0
/** Lines that a peer repeats: the first ones are written, the others counted. */
import { mock } from 'node:test';
import t from 'tap';
import { type Log, limitRepeats, summarizeRepeats, withoutLimit } from '../../src/logging/index.js';

function collected(limit?: Parameters<typeof limitRepeats>[1]): { lines: string[]; log: Log } {
  const lines: string[] = [];
  const log = limitRepeats((level, message) => lines.push(`${level} ${message}`), limit);
  return { lines, log };
}

t.test('of 100,000 lines that differ in numbers, five are written, and one says how many more', async (t) => {
  const { lines, log } = collected();
  for (let i = 0; i < 100_000; i++) log('warn', `command ${i}: refused at 0x${i.toString(16)}`, 'VMM 1');
  t.equal(lines.length, 5);
  summarizeRepeats(log);
  t.match(lines[5], /^warn 99995 more lines of VMM 1 like "command 99999: refused at 0x1869f" in 1 s$/);
  t.equal(lines.length, 6);
});

t.test('one peer does not use up what another may say, nor one message another', async (t) => {
  const { lines, log } = collected();
  for (let i = 0; i < 100; i++) log('warn', 'refused', 'manager 1');
  log('warn', 'refused', 'manager 2');
  log('warn', 'broken', 'manager 1');
  log('error', 'refused', 'manager 1');
  t.same(lines.slice(5), ['warn refused', 'warn broken', 'error refused']);
});

t.test('a peer that connects again and again, and one that invents messages, are limited too', async (t) => {
  const { lines, log } = collected();
  for (let i = 0; i < 10_000; i++) log('info', 'a manager has connected', `manager ${i}`);
  t.equal(lines.length, 20);
  for (let i = 0; i < 10_000; i++)
    log('warn', `no such thing: ${'x'.repeat(i % 150)} ${letters(i)}`, 'VMM 1');
  t.ok(lines.length < 20 + 64 * 5 + 20, `${lines.length} lines`);
});

t.test('a kind that repeats through a window stays limited; one that stops is written again', async (t) => {
  mock.timers.enable({ apis: ['setInterval'] });
  t.teardown(() => mock.timers.reset());
  const { lines, log } = collected({ perPeer: 2, perKind: 4, kinds: 8, windowMs: 1000 });
  const times = (count: number) => {
    for (let i = 0; i < count; i++) log('warn', 'refused', 'VMM 1');
    return lines.splice(0);
  };
  t.same(times(5), ['warn refused', 'warn refused']);
  mock.timers.tick(1000);
  t.match(times(7), [/^warn 3 more lines of VMM 1 like "refused"/]);
  mock.timers.tick(1000);
  t.match(times(0), [/^warn 7 more lines of VMM 1 like "refused"/]);
  mock.timers.tick(1000);
  t.same(times(2), ['warn refused', 'warn refused'], 'after a window without any');
  mock.timers.tick(3000);
  t.same(times(0), []);
});

t.test('a log has one limit, however often it is asked for', async (t) => {
  const { log } = collected();
  t.equal(limitRepeats(log), log);
  t.doesNotThrow(() => limitRepeats(undefined)('info', 'without a log'));
});

t.test('a long line is cut', async (t) => {
  const { lines, log } = collected();
  log('warn', 'y'.repeat(1_000_000));
  t.ok((lines[0]?.length ?? 0) < 5000);
});

/** A word for a number, without digits. */
function letters(value: number): string {
  return [...value.toString()].map((digit) => String.fromCharCode(97 + Number(digit))).join('');
}

t.test('a log whose owner wants every line gets every line', async (t) => {
  const lines: string[] = [];
  const log = limitRepeats(withoutLimit((_, message) => lines.push(message)));
  for (let i = 0; i < 1000; i++) log('info', 'a manager has connected', 'manager 1');
  summarizeRepeats(log);
  t.equal(lines.length, 1000);
});
