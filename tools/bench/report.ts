// SPDX-License-Identifier: Apache-2.0
/** What a benchmark found, how it is summed up, and how it is shown. */

/** A limit that a result has to keep. */
export interface Bound {
  /** `ratio`: of the measured to the baseline's value. `value`: of the measured value itself. */
  readonly of: 'ratio' | 'value';
  readonly at: 'most' | 'least';
  readonly limit: number;
}

export type Unit = 'µs' | 'ms' | 'MB/s' | 'MiB' | 'IOPS';

export interface Result {
  /** What was measured, as a reader would say it. */
  readonly what: string;
  readonly unit: Unit;
  /** Median of the rounds. */
  readonly value: number;
  /** Median of the C baseline's rounds, taken in turn with ours. */
  readonly baseline?: number;
  /** Median of the rounds' own ratios: what slows a whole round down does not touch it. */
  readonly ratio?: number;
  readonly rounds: number;
  /** Half the distance between the quartiles of the rounds, as a part of the median. */
  readonly noise: number;
  readonly bound?: Bound;
}

export interface Section {
  /** For `--only`. */
  readonly name: string;
  readonly title: string;
  /** Measures. What cannot be measured on this machine is left out, and `note` says why. */
  run(options: RunOptions): Promise<Result[]>;
}

export interface RunOptions {
  /** Rounds of each measurement. */
  readonly rounds: number;
  /** A folder for sockets and files, removed afterwards. */
  readonly folder: string;
  /** For people: what is being done, or why something is left out. */
  note(text: string): void;
}

export function median(values: readonly number[]): number {
  return quantile(values, 0.5);
}

function quantile(values: readonly number[], part: number): number {
  const sorted = [...values].sort((a, b) => a - b);
  const position = (sorted.length - 1) * part;
  const below = sorted[Math.floor(position)] ?? Number.NaN;
  const above = sorted[Math.ceil(position)] ?? Number.NaN;
  return below + (above - below) * (position - Math.floor(position));
}

/** Sums up the rounds of a measurement and of the baseline that was measured in turn with it. */
export function summarise(
  what: string,
  unit: Unit,
  values: readonly number[],
  rest: { baseline?: readonly number[]; bound?: Bound } = {},
): Result {
  const middle = median(values);
  const { baseline, bound } = rest;
  return {
    what,
    unit,
    value: middle,
    ...(baseline === undefined
      ? {}
      : { baseline: median(baseline), ratio: median(values.map((value, i) => value / baseline[i]!)) }),
    rounds: values.length,
    noise: middle === 0 ? 0 : (quantile(values, 0.75) - quantile(values, 0.25)) / 2 / middle,
    ...(bound === undefined ? {} : { bound }),
  };
}

/** Whether the result keeps its bound; undefined when it has none. */
export function keepsBound({ bound, ratio, value }: Result): boolean | undefined {
  if (bound === undefined) return undefined;
  const measured = bound.of === 'ratio' ? (ratio ?? Number.NaN) : value;
  return bound.at === 'most' ? measured <= bound.limit : measured >= bound.limit;
}

function number(value: number): string {
  if (value >= 1000) return Math.round(value).toLocaleString('en-US');
  return value.toFixed(value < 100 ? 1 : 0);
}

function boundText({ bound, unit }: Result): string {
  if (bound === undefined) return '';
  const sign = bound.at === 'most' ? '≤' : '≥';
  return bound.of === 'ratio' ? `${sign} ${bound.limit}x` : `${sign} ${bound.limit} ${unit}`;
}

/** The rows of one section, in columns. */
export function renderTable(results: readonly Result[]): string {
  const head = ['', 'devstate', 'plain C', 'ratio', 'bound', '', 'noise', 'rounds'];
  const rows = results.map((result) => [
    result.what,
    `${number(result.value)} ${result.unit}`,
    result.baseline === undefined ? '' : `${number(result.baseline)} ${result.unit}`,
    result.ratio === undefined ? '' : `${result.ratio.toFixed(2)}x`,
    boundText(result),
    { true: 'ok', false: 'MISSED', undefined: '' }[String(keepsBound(result))] ?? '',
    `±${(100 * result.noise).toFixed(0)}%`,
    String(result.rounds),
  ]);
  const widths = head.map((_, column) => Math.max(...[head, ...rows].map((row) => row[column]!.length)));
  return [head, ...rows]
    .map((row) =>
      row
        .map((cell, column) => (column === 0 ? cell.padEnd(widths[column]!) : cell.padStart(widths[column]!)))
        .join('  ')
        .trimEnd(),
    )
    .join('\n');
}
