// SPDX-License-Identifier: Apache-2.0
/** Which converters, one after the other, lead from one format to another. */
import type { Uuid } from '../uuid.js';
import type { Converter } from './converter.js';

/** A format's representation: all minor versions of one major version. */
export interface FormatPoint {
  readonly uuid: Uuid;
  readonly major: number;
}

/**
 * The converters from `from` to `to`, none if they are the same; undefined if there is no way. Deterministic: of all ways, the one
 * that loses least (number of phrases), of these the shortest, of these the first by the names passed through.
 * @param options.lossy whether a way that loses something will do
 */
export function findPath(
  from: FormatPoint,
  to: FormatPoint,
  converters: readonly Converter[],
  options: { lossy?: boolean } = {},
): Converter[] | undefined {
  const usable = options.lossy === true ? converters : converters.filter(({ losses }) => losses.length === 0);
  const open: Converter[][] = [[]];
  // By what was lost too: of two ways to one point, that which has lost more may be the one to lose nothing from there on.
  const reached = new Set<string>();
  while (open.length > 0) {
    open.sort(compareWays);
    const way = open.shift()!;
    const at = endOf(way) ?? from;
    if (isSame(at, to)) return way;
    const key = JSON.stringify([at.uuid, at.major, lossesOf(way).sort()]);
    if (reached.has(key)) continue;
    reached.add(key);
    for (const converter of usable) if (isSame(converter.from, at)) open.push([...way, converter]);
  }
  return undefined;
}

/** Everything that a way loses, each phrase once. */
export function lossesOf(way: readonly Converter[]): string[] {
  return [...new Set(way.flatMap(({ losses }) => losses))];
}

function endOf(way: readonly Converter[]): FormatPoint | undefined {
  const last = way.at(-1);
  return last === undefined ? undefined : { uuid: last.to.uuid, major: last.to.version.major };
}

function isSame(a: FormatPoint, b: FormatPoint): boolean {
  return a.uuid === b.uuid && a.major === b.major;
}

function compareWays(a: readonly Converter[], b: readonly Converter[]): number {
  const names = (way: readonly Converter[]): string => way.map(({ to }) => to.name).join(' ');
  // Two converters between the same names: the order of registration must not decide.
  const whole = (way: readonly Converter[]): string =>
    JSON.stringify(way.map(({ to, losses }) => [to, losses]));
  return (
    lossesOf(a).length - lossesOf(b).length ||
    a.length - b.length ||
    compareTexts(names(a), names(b)) ||
    compareTexts(whole(a), whole(b))
  );
}

function compareTexts(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0;
}
