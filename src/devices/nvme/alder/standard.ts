// SPDX-License-Identifier: Apache-2.0
/** The controller's state ↔ the vendor-neutral `NvmeState`. By values alone: no controller is needed. */

import type { NvmeFeature, NvmeIdentity, NvmeState } from '../../../formats/index.js';
import { Cc, Csts, ERROR_LOG_ENTRIES, FeatureId, type NvmeParameters } from '../spec/index.js';
import { standardIdentity } from '../standard/identity.js';
import { defaultFeatures, type FeatureValues } from './features.js';
import { type ControllerState, fieldProblem, stateProblem } from './state.js';

/** THSEL 1 of Temperature Threshold. */
const UNDER_TEMPERATURE = 0x100000;
/** CD of Interrupt Vector Configuration. */
const COALESCING_DISABLED = 0x10000;

type SimpleFeature = Exclude<
  keyof FeatureValues,
  'coalescingDisabled' | 'temperatureOver' | 'temperatureUnder'
>;

/** Features that are dword 11 and nothing else. */
const SIMPLE: readonly (readonly [id: number, key: SimpleFeature])[] = [
  [FeatureId.ARBITRATION, 'arbitration'],
  [FeatureId.POWER_MANAGEMENT, 'powerManagement'],
  [FeatureId.ERROR_RECOVERY, 'errorRecovery'],
  [FeatureId.VOLATILE_WRITE_CACHE, 'volatileWriteCache'],
  [FeatureId.INTERRUPT_COALESCING, 'interruptCoalescing'],
  [FeatureId.WRITE_ATOMICITY, 'writeAtomicity'],
  [FeatureId.ASYNC_EVENT_CONFIGURATION, 'asyncEvents'],
];

/** @param msixPending the MSI-X pending bits, which the state itself does not have */
export function alderToStandard(
  state: ControllerState,
  parameters: NvmeParameters,
  msixPending: Uint8Array,
): NvmeState {
  const queue = { physicallyContiguous: true };
  return {
    identity: standardIdentity(parameters),
    pci: { config: state.config, msixTable: state.msixTable, msixPending },
    registers: { ...state.registers },
    submissionQueues: state.submission.map(({ size, cq, ...rest }) => ({
      ...rest,
      ...queue,
      entries: size,
      completionQueue: cq,
    })),
    completionQueues: state.completion.map(({ size, held: _, ...rest }) => ({
      ...rest,
      ...queue,
      entries: size,
    })),
    completions: state.completion.flatMap(({ held }) =>
      held.map(({ sq, cid, status, result }) => ({ submissionQueue: sq, commandId: cid, status, result })),
    ),
    commands: state.commands.map(({ sq, entry }) => ({ submissionQueue: sq, entry })),
    features: featuresOf(state.features, parameters),
    events: {
      requests: state.events.requests,
      pending: state.events.pending.map(({ page, ...event }) => ({ ...event, logPage: page })),
      masked: state.events.masked,
    },
    health: {
      ...state.health.counters,
      errorCount: state.health.errorCount,
      errors: state.health.errors.map(({ sqid, cid, nsid, ...entry }) => ({
        ...entry,
        submissionQueue: sqid,
        commandId: cid,
        namespace: nsid,
      })),
    },
  };
}

/** In order of identifier, those with a selector once for each thing selected. */
function featuresOf(values: FeatureValues, parameters: NvmeParameters): NvmeFeature[] {
  const { queues, msix_vectors: vectors } = parameters;
  const disabled = new Set(values.coalescingDisabled);
  const list = [
    ...SIMPLE.map(([id, key]) => [id, values[key]] as const),
    [FeatureId.TEMPERATURE_THRESHOLD, values.temperatureOver] as const,
    [FeatureId.TEMPERATURE_THRESHOLD, values.temperatureUnder | UNDER_TEMPERATURE] as const,
    [FeatureId.NUMBER_OF_QUEUES, (queues - 1) * 0x10001] as const,
    ...Array.from({ length: vectors }, (_, vector) => {
      const value = disabled.has(vector) ? vector | COALESCING_DISABLED : vector;
      return [FeatureId.INTERRUPT_VECTOR_CONFIGURATION, value] as const;
    }),
  ];
  return list
    .sort(([a], [b]) => a - b)
    .map(([id, value]) => ({ id, namespace: 0, value, data: new Uint8Array(0) }));
}

/**
 * A state as this controller's.
 * @returns the state, and why this controller cannot have it, if it cannot
 */
export function standardToAlder(
  state: NvmeState,
  parameters: NvmeParameters,
): { state: ControllerState; problem: string | undefined } {
  const reasons = identityDifferences(state.identity, standardIdentity(parameters));
  for (const queue of [...state.submissionQueues, ...state.completionQueues]) {
    if (!queue.physicallyContiguous) reasons.push(`queue ${queue.id} is not physically contiguous (CAP.CQR)`);
  }
  const completionQueueOf = new Map(
    state.submissionQueues.map(({ id, completionQueue }) => [id, completionQueue]),
  );
  for (const { submissionQueue } of [...state.completions, ...state.commands]) {
    if (!completionQueueOf.has(submissionQueue))
      reasons.push(`a command is of queue ${submissionQueue}, which is not there`);
  }
  const { cc, csts } = state.registers;
  // A shutdown that is asked for and under way begins again here.
  const anew = (csts & Csts.SHST_MASK) === Csts.SHST_OCCURRING && (cc & Cc.SHN_MASK) !== 0;
  const { health, events } = state;
  const own: ControllerState = {
    config: state.pci.config,
    msixTable: state.pci.msixTable,
    registers: { ...state.registers, csts: anew ? csts - Csts.SHST_OCCURRING : csts },
    submission: state.submissionQueues.map(
      ({ id, base, entries, head, tail, completionQueue, priority }) => ({
        id,
        base,
        size: entries,
        head,
        tail,
        cq: completionQueue,
        priority,
      }),
    ),
    completion: state.completionQueues.map(
      ({ id, base, entries, head, tail, phase, vector, interruptsEnabled }) => ({
        id,
        base,
        size: entries,
        head,
        tail,
        phase,
        vector,
        interruptsEnabled,
        held: state.completions
          .filter(({ submissionQueue }) => completionQueueOf.get(submissionQueue) === id)
          .map(({ submissionQueue, commandId, status, result }) => ({
            sq: submissionQueue,
            cid: commandId,
            status,
            result,
          })),
      }),
    ),
    commands: state.commands.map(({ submissionQueue, entry }) => ({ sq: submissionQueue, entry })),
    features: featureValues(state.features, parameters, reasons),
    events: {
      requests: [...events.requests],
      pending: events.pending.map(({ logPage, ...event }) => ({ ...event, page: logPage })),
      masked: [...new Set(events.masked)].sort((a, b) => a - b),
    },
    health: {
      counters: {
        bytesRead: health.bytesRead,
        bytesWritten: health.bytesWritten,
        readCommands: health.readCommands,
        writeCommands: health.writeCommands,
        mediaErrors: health.mediaErrors,
      },
      errorCount: health.errorCount,
      // The newest entries of a longer log are taken.
      errors: health.errors
        .slice(0, ERROR_LOG_ENTRIES)
        .map(({ submissionQueue, commandId, namespace, ...entry }) => ({
          ...entry,
          sqid: submissionQueue,
          cid: commandId,
          nsid: namespace,
        })),
    },
  };
  // Fields are looked at together only where each is what it should be.
  const problem =
    reasons.length > 0 ? reasons.join('; ') : (fieldProblem(own) ?? stateProblem(own, parameters));
  return { state: own, problem };
}

function featureValues(
  features: readonly NvmeFeature[],
  parameters: NvmeParameters,
  reasons: string[],
): FeatureValues {
  const values = defaultFeatures();
  for (const { id, namespace, value, data } of features) {
    const simple = SIMPLE.find(([known]) => known === id);
    const name = `feature 0x${id.toString(16).padStart(2, '0')}`;
    if (namespace !== 0 || data.length > 0) reasons.push(`${name} is of a namespace or has data`);
    else if (simple !== undefined) values[simple[1]] = value;
    else if (id === FeatureId.TEMPERATURE_THRESHOLD && value < 0x10000) values.temperatureOver = value;
    else if (id === FeatureId.TEMPERATURE_THRESHOLD && value >>> 16 === UNDER_TEMPERATURE >>> 16) {
      values.temperatureUnder = value & 0xffff;
    } else if (id === FeatureId.INTERRUPT_VECTOR_CONFIGURATION && value >>> 16 <= 1) {
      if (value >>> 16 === 1) values.coalescingDisabled.push(value & 0xffff);
    } else if (id === FeatureId.NUMBER_OF_QUEUES) {
      const most = parameters.queues - 1;
      if ((value & 0xffff) > most || value >>> 16 > most)
        reasons.push(`${name} asks for more than ${most + 1} queues`);
    } else reasons.push(`${name} with the value 0x${value.toString(16)} does not exist here`);
  }
  values.coalescingDisabled = [...new Set(values.coalescingDisabled)].sort((a, b) => a - b);
  return values;
}

function identityDifferences(saved: NvmeIdentity, own: NvmeIdentity): string[] {
  const differences: string[] = [];
  for (const [name, value] of Object.entries(own) as [keyof NvmeIdentity, unknown][]) {
    if (name !== 'namespaces' && saved[name] !== value)
      differences.push(`${name} is ${saved[name]} there, ${value} here`);
  }
  const [there, here] = [saved.namespaces, own.namespaces].map((list) => list.map(namespaceText).join(', '));
  if (there !== here) differences.push(`namespaces are ${there} there, ${here} here`);
  return differences;
}

function namespaceText({ id, size, lbaSize, nguid, eui64 }: NvmeIdentity['namespaces'][number]): string {
  const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex');
  return `${id} (${size} bytes in blocks of ${lbaSize}, ${hex(nguid)}, ${hex(eui64)})`;
}
