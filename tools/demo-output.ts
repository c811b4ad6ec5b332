// SPDX-License-Identifier: Apache-2.0
/** How the demonstration speaks: one line for each thing that happened, with its numbers. */

const bold = (text: string) => (process.stdout.isTTY ? `\x1b[1m${text}\x1b[0m` : text);

export function headline(text: string): void {
  process.stdout.write(`\n${bold(text)}\n\n`);
}

/** `Label  what happened`. */
export function tell(label: string, text: string): void {
  process.stdout.write(`  ${bold(label.padEnd(10))} ${text}\n`);
}

/** With thousands separators. */
export function count(value: number): string {
  return value.toLocaleString('en-US');
}

export function bytes(value: number): string {
  if (value < 10_000) return `${value} B`;
  if (value < 1024 * 1024) return `${(value / 1024).toFixed(1)} KiB`;
  return `${(value / (1024 * 1024)).toFixed(1)} MiB`;
}

export function milliseconds(value: number): string {
  return `${value.toFixed(value < 100 ? 1 : 0)} ms`;
}

/** `name 1.2, other 0.3`: parts in milliseconds, largest first, those that took no time left out. */
export function parts(values: Readonly<Record<string, number>>): string {
  return Object.entries(values)
    .filter(([, value]) => value >= 0.05)
    .sort(([, a], [, b]) => b - a)
    .map(([name, value]) => `${name} ${value.toFixed(1)}`)
    .join(', ');
}
