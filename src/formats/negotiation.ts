// SPDX-License-Identifier: Apache-2.0
/**
 * Which format a device's state travels in, chosen before pre-copy from what both ends offer. Deterministic, and it explains itself:
 * every candidate is listed with the reason it was taken or not. `formats/README.md`, "Negotiation", is the norm.
 */
import { type Converter, findPath, lossesOf } from './conversion/index.js';
import type { FormatVersion } from './envelope/header.js';
import { formatVersionText, isSameName } from './registry.js';
import type { Uuid } from './uuid.js';

/** How much of the state a format holds: `partial` leaves out what its documentation names. */
export type Fidelity = 'complete' | 'partial';

/** A format that a device can save, load, or both. */
export interface FormatOffer {
  readonly uuid: Uuid;
  readonly name: string;
  /** The newest it writes. It reads every minor version of this major version. */
  readonly version: FormatVersion;
  readonly save: boolean;
  readonly load: boolean;
  readonly fidelity: Fidelity;
  /** Features of the envelope that it can read and write. */
  readonly features: readonly string[];
  /** Longest stream it loads, bytes; absent: any. */
  readonly limit?: number;
  /** About how long the stream would be if the device stopped now, bytes; absent: not known. */
  readonly estimate?: number;
}

/** One way for the state: the format it is saved in, what converts it on the way, the format it is loaded in. */
export interface Candidate {
  readonly from: FormatOffer;
  readonly way: readonly Converter[];
  readonly to: FormatOffer;
  /** What is lost on this way; empty if nothing is. */
  readonly losses: readonly string[];
  readonly taken: boolean;
  /** Why it was taken, or was not. */
  readonly reason: string;
}

export interface Negotiation {
  readonly taken: Candidate | undefined;
  /** Best first. */
  readonly candidates: readonly Candidate[];
}

export interface NegotiationOptions {
  readonly converters?: readonly Converter[];
  /** `auto`, or the name or UUID of the format that is to cross between the two ends. Default: `auto`. */
  readonly format?: string;
  /** Whether a way that loses something will do. */
  readonly allowLossy?: boolean;
}

/** One candidate before it is judged. */
interface Way {
  readonly from: FormatOffer;
  readonly way: readonly Converter[] | undefined;
  readonly to: FormatOffer;
  readonly losses: readonly string[];
  /** Order among candidates: lower first, compared from left to right. */
  readonly rank: readonly number[];
}

/**
 * Chooses among the formats that `source` saves and `destination` loads. Both lists are in their device's order of
 * preference. Ways that lose nothing come first, then those with fewer conversions, then the source's preference, then the destination's.
 */
export function negotiate(
  source: readonly FormatOffer[],
  destination: readonly FormatOffer[],
  options: NegotiationOptions = {},
): Negotiation {
  const ways = source.flatMap((from, i) => destination.map((to, j) => wayBetween(from, i, to, j, options)));
  ways.sort((a, b) => compareRanks(a.rank, b.rank));
  let taken: Candidate | undefined;
  const candidates = ways.map((way): Candidate => {
    const refusal = refusalOf(way, options) ?? (taken === undefined ? undefined : whyAfter(way, taken));
    const candidate = {
      from: way.from,
      way: way.way ?? [],
      to: way.to,
      losses: way.losses,
      taken: refusal === undefined,
      reason: refusal ?? whyTaken(way, options),
    };
    if (candidate.taken) taken = candidate;
    return candidate;
  });
  return { taken, candidates };
}

function wayBetween(
  from: FormatOffer,
  i: number,
  to: FormatOffer,
  j: number,
  { converters = [] }: NegotiationOptions,
): Way {
  const points = [from, to].map(({ uuid, version }) => ({ uuid, major: version.major })) as [Point, Point];
  const way =
    findPath(...points, converters, { lossy: false }) ?? findPath(...points, converters, { lossy: true });
  const losses = [...(way === undefined ? [] : lossesOf(way))];
  for (const { name, fidelity } of from.uuid === to.uuid ? [from] : [from, to]) {
    if (fidelity === 'partial') losses.push(`what ${name} does not hold`);
  }
  const length = way?.length ?? Number.MAX_SAFE_INTEGER;
  return { from, way, to, losses, rank: [losses.length, length, i, j] };
}

type Point = { uuid: Uuid; major: number };

function refusalOf(
  way: Way,
  { format = 'auto', allowLossy = false }: NegotiationOptions,
): string | undefined {
  const { from, to, losses } = way;
  if (!from.save) return 'the source does not save it';
  if (!to.load) return 'the destination does not load it';
  if (way.way === undefined) {
    if (from.uuid === to.uuid) {
      return `the source writes version ${from.version.major}, the destination reads ${to.version.major}`;
    }
    return 'no converter leads from the one to the other';
  }
  if (format !== 'auto' && ![from, to].some((offer) => isSameName(offer, format)))
    return `${format} was asked for`;
  if (losses.length > 0 && !allowLossy) return `it loses ${losses.join(', ')}`;
  if (to.limit !== undefined && from.estimate !== undefined && from.estimate > to.limit) {
    return `about ${from.estimate} bytes, of which the destination loads ${to.limit}`;
  }
  return undefined;
}

function whyTaken({ from, way = [], losses }: Way, { format = 'auto' }: NegotiationOptions): string {
  const how =
    way.length === 0 ? 'both ends have it' : `converted by ${way.length} step${way.length === 1 ? '' : 's'}`;
  const loss = losses.length === 0 ? '' : `; loses ${losses.join(', ')}`;
  const wish = format === 'auto' ? '' : '; asked for';
  return `${how}${way.length === 0 && from.fidelity === 'complete' ? ', and it holds everything' : ''}${loss}${wish}`;
}

function whyAfter({ from, way = [], losses }: Way, taken: Candidate): string {
  if (losses.length > taken.losses.length) return 'it loses more than the one taken';
  if (way.length > taken.way.length) return 'it needs more conversions than the one taken';
  return `the ${from === taken.from ? 'destination' : 'source'} prefers the one taken`;
}

function compareRanks(a: readonly number[], b: readonly number[]): number {
  for (const [index, value] of a.entries()) if (value !== b[index]) return value - (b[index] ?? 0);
  return 0;
}

/** `org.devstate.nvme 1.0`, or `a 1.0 → b 1.0`. */
export function candidateName({ from, way, to }: Pick<Candidate, 'from' | 'way' | 'to'>): string {
  const name = (offer: { name: string; version: FormatVersion }): string =>
    `${offer.name} ${formatVersionText(offer.version)}`;
  if (way.length === 0 && from.uuid === to.uuid) return name(from);
  const steps = way.length === 0 ? [to] : way.map((converter) => converter.to);
  return [from, ...steps].map(name).join(' → ');
}
