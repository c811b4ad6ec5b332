// SPDX-License-Identifier: Apache-2.0
/**
 * Whether a guest finds at the destination the CPU that it knows. QEMU's migration stream does not tell: a guest that was
 * started on another CPU arrives, and crashes at the first instruction that this one lacks.
 */
import * as z from '../zod.js';
import { type QmpClient, QmpCommandError } from './qmp.js';

interface Cancellable {
  readonly signal?: AbortSignal | undefined;
}

const Cpus = z.array(z.object({ 'qom-path': z.string() }));
/** One register that CPUID gives: which, and the bits that are set. */
const FeatureWords = z.array(
  z.object({
    'cpuid-register': z.string(),
    'cpuid-input-eax': z.number(),
    'cpuid-input-ecx': z.number().optional(),
    features: z.number(),
  }),
);

interface Cpu {
  /** QOM type, as `qemu64-x86_64-cpu`. */
  readonly type: string;
  /** Features by register, for messages too; undefined of a machine that is no x86. */
  readonly features: ReadonlyMap<string, bigint> | undefined;
}

/**
 * What the CPUs of a VM that runs have and those of the destination lack, as sentences. Where QEMU does not list
 * features (other machines than x86), the types have to be the same.
 */
export async function missingCpuFeatures(
  source: QmpClient,
  destination: QmpClient,
  options: Cancellable = {},
): Promise<string[]> {
  const [here, there] = [await firstCpu(source, options), await firstCpu(destination, options)];
  if (here === undefined || there === undefined) return [];
  const types = `the source QEMU has the CPU ${here.type} and the destination QEMU ${there.type}`;
  const next = 'start the destination with the -cpu of the source';
  if (here.features === undefined || there.features === undefined)
    return here.type === there.type ? [] : [`${types}, which its guest does not know: ${next}`];
  const missing = [...here.features].flatMap(([register, bits]) => {
    const lacking = bits & ~(there.features?.get(register) ?? 0n);
    return lacking === 0n ? [] : [`${register} 0x${lacking.toString(16)}`];
  });
  if (missing.length === 0) return [];
  return [`${types}, which lacks features that the guest may use (CPUID ${missing.join(', ')}): ${next}`];
}

/** All CPUs of a machine are alike. Undefined before it has one. */
async function firstCpu(qmp: QmpClient, { signal }: Cancellable): Promise<Cpu | undefined> {
  const [first] = await qmp.execute('query-cpus-fast', { schema: Cpus, signal });
  if (first === undefined) return undefined;
  const path = first['qom-path'];
  const type = await qmp.execute('qom-get', {
    arguments: { path, property: 'type' },
    schema: z.string(),
    signal,
  });
  const words = await qmp
    .execute('qom-get', { arguments: { path, property: 'feature-words' }, schema: FeatureWords, signal })
    .catch((error: unknown) => {
      if (error instanceof QmpCommandError) return undefined;
      throw error;
    });
  const features = words?.map((word): [string, bigint] => {
    const leaf = word['cpuid-input-ecx'] === undefined ? '' : `.${word['cpuid-input-ecx']}`;
    const name = `${word['cpuid-input-eax'].toString(16)}h${leaf} ${word['cpuid-register']}`;
    return [name, BigInt(word.features)];
  });
  return { type, features: features === undefined ? undefined : new Map(features) };
}
