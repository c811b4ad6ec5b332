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
  const reached = new Set<string>();
  while (open.length > 0) {
    open.sort(compareWays);
    const way = open.shift()!;
    const at = endOf(way) ?? from;
    if (isSame(at, to)) return way;
    const key = `${at.uuid} ${at.major}`;
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
  return lossesOf(a).length - lossesOf(b).length || a.length - b.length || (names(a) < names(b) ? -1 : 1);
}
