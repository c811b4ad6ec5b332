// SPDX-License-Identifier: Apache-2.0
/**
 * How the state of a device gets from one server to another: what each end can do is asked for, the formats are negotiated.
 *
 * Four kinds of peer: one with formats, one that gives values one by one, a driver of the kernel, whose stream shows by
 * nothing but the driver what it is, and one that does none of it (any vfio-user server): its stream is passed on as it
 * is, to a peer of the same kind, and it is unknown whether it fits.
 */

import { converters as knownConverters } from '../devices/catalogue.js';
import {
  type Candidate,
  type Converter,
  candidateName,
  type DeviceModel,
  type FormatOffer,
  findFormat,
  modelDifferences,
  type Negotiation,
  negotiate,
  remedies,
  uuidFromBytes,
} from '../formats/index.js';
import type { EndDescription, MigrationEnd, ValueAccess } from '../migration/index.js';

/**
 * How a peer gives and takes state: as a stream of a format, value by value, as the raw stream of a driver whose format is
 * known, or as a stream of who knows what.
 */
export type StateInterface = 'formats' | 'values' | 'raw' | 'opaque';

export interface StatePeer {
  readonly interface: StateInterface;
  readonly offers: readonly FormatOffer[];
  /** Undefined if it does not say. */
  readonly model: DeviceModel | undefined;
  /** All that a device says of itself. */
  readonly description?: EndDescription | undefined;
  /** The values of a peer whose interface is `values`. */
  readonly values?: ValueAccess;
}

export interface FormatOptions {
  /** `auto`, or the name or UUID of a format. Default: `auto`. */
  readonly format?: string;
  /** Whether a way that loses something will do. */
  readonly allowLossy?: boolean;
  /** Compress the stream, if both ends can. */
  readonly compress?: boolean;
}

/** What a negotiation came to, for people and for JSON. */
export interface NegotiationSummary {
  /** The formats passed through; null if none can be used, and between peers that do not say which they have. */
  readonly taken: string | null;
  readonly reason: string;
  readonly losses: readonly string[];
  readonly features: readonly string[];
  /** Best first, the taken one among them. */
  readonly candidates: readonly {
    readonly name: string;
    readonly taken: boolean;
    readonly reason: string;
    readonly losses: readonly string[];
  }[];
}

/** How one device's state will travel. */
export interface StatePlan {
  readonly source: StatePeer;
  readonly destination: StatePeer;
  /** Undefined between two opaque peers. */
  readonly negotiation: Negotiation | undefined;
  /** Features of the envelope that both ends use. */
  readonly features: readonly string[];
  /** What comes is a blob that wraps the stream of another such device: the destination is given what is in it. */
  readonly wrapped?: boolean;
}

/** A plan, or every reason why there is none. */
export interface Planned {
  readonly plan: StatePlan;
  /** Empty if the plan holds. */
  readonly reasons: readonly string[];
  /** Parameters that the destination would have to be started with. */
  readonly remedies: readonly string[];
}

/** Asks a device what it can do. */
export async function askPeer(device: MigrationEnd): Promise<StatePeer> {
  const description = await device.description();
  const said = { model: description?.model, description };
  const offers = await device.formats();
  if (offers !== undefined && offers.length > 0)
    return { interface: device.streams === 'raw' ? 'raw' : 'formats', offers, ...said };
  const values = await device.values();
  if (values === undefined) return { interface: 'opaque', offers: [], ...said };
  const { uuid: bytes, major, minor } = await values.valueNames();
  const uuid = uuidFromBytes(bytes);
  const offer: FormatOffer = {
    uuid,
    name: findFormat(uuid)?.name ?? uuid,
    version: { major, minor },
    save: true,
    load: true,
    fidelity: 'complete',
    features: [],
  };
  return { interface: 'values', offers: [offer], values, ...said };
}

/** @param converters what can be used on the way; default: all that are known */
export function planState(
  source: StatePeer,
  destination: StatePeer,
  options: FormatOptions = {},
  converters: readonly Converter[] = knownConverters,
): Planned {
  const reasons: string[] = [];
  let fixes: string[] = [];
  if (source.model !== undefined && destination.model !== undefined) {
    reasons.push(...modelDifferences(source.model, destination.model));
    fixes = remedies(source.model, destination.model);
  }
  const isOpaque = [source, destination].map((peer) => peer.interface === 'opaque');
  if (isOpaque.includes(true)) {
    const plan = { source, destination, negotiation: undefined, features: [] };
    const [here, there] = isOpaque[0] === true ? ['source', 'destination'] : ['destination', 'source'];
    if (isOpaque.includes(false)) {
      reasons.push(
        `the ${here} does not say which formats it has, so it is unknown whether its state fits the ${there}: put servers of one kind, or a relay before the server, at both ends`,
      );
    } else if (options.format !== undefined && options.format !== 'auto') {
      reasons.push(`${options.format} was asked for, but neither end says which formats it has`);
    }
    return { plan, reasons, remedies: fixes };
  }
  const negotiation = negotiate(source.offers, destination.offers, { ...options, converters });
  const { taken } = negotiation;
  if (taken === undefined) reasons.push(`no format can be used: ${explain(negotiation)}`);
  const features = options.compress === true && taken !== undefined ? commonFeatures(taken) : [];
  return { plan: { source, destination, negotiation, features }, reasons, remedies: fixes };
}

function commonFeatures({ from, to }: Candidate): string[] {
  return bestFeature(from.features.filter((feature) => to.features.includes(feature)));
}

/** The one to compress with among those that can be had: one is enough. */
export function bestFeature(features: readonly string[]): string[] {
  return features.includes('zstd') ? ['zstd'] : features.slice(0, 1);
}

/** Every candidate with the reason it was not taken, as one sentence. */
function explain({ candidates }: Negotiation): string {
  if (candidates.length === 0) return 'one of the two ends has none';
  return candidates.map(({ from, to, reason }) => `${from.name} to ${to.name}: ${reason}`).join(', ');
}

/** Tells both ends what was agreed on. Before the saving and the loading begin. */
export async function selectFormats(
  plan: StatePlan,
  source: MigrationEnd,
  destination: MigrationEnd,
): Promise<void> {
  const taken = plan.negotiation?.taken;
  if (taken === undefined) return;
  if (plan.source.interface === 'formats') await source.selectFormat(taken.from, 'save', plan.features);
  if (plan.destination.interface === 'formats') await destination.selectFormat(taken.to, 'load');
}

/** Why a plan does not hold, and what to do about it, as sentences; empty if it holds. */
export function planReasons({ reasons, remedies: fixes }: Planned): string[] {
  if (fixes.length === 0) return [...reasons];
  return [...reasons, `start the destination with --param ${fixes.map(shellWord).join(' --param ')}`];
}

/** As it is typed: a serial number may have blanks. */
function shellWord(text: string): string {
  return /^[\w.,:=@%+/-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}

export function summarisePlan(plan: StatePlan): NegotiationSummary {
  const { negotiation, features } = plan;
  const taken = negotiation?.taken;
  return {
    taken: taken === undefined ? null : candidateName(taken),
    reason: taken?.reason ?? whyNoneTaken(plan),
    losses: taken?.losses ?? [],
    features,
    candidates: (negotiation?.candidates ?? []).map((candidate) => ({
      name: candidateName(candidate),
      taken: candidate.taken,
      reason: candidate.reason,
      losses: candidate.losses,
    })),
  };
}

function whyNoneTaken({ source, destination, negotiation }: StatePlan): string {
  if (negotiation !== undefined) return 'no format of the source can be used at the destination';
  if (source.interface !== destination.interface) return 'only one of the two ends says which formats it has';
  return 'the stream is passed on as it is: neither end says which formats it has';
}
