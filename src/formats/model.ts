// SPDX-License-Identifier: Apache-2.0
/**
 * Device models: what a guest can tell of a device, as a URI and parameters, and whether two devices look the same to it.
 * The rules are those of S. Hajnoczi's proposal for VFIO device migration (2020): a model keeps its URI while it evolves;
 * new behaviour is a new parameter with an *off value*, at which the device is as if the parameter did not exist.
 */

/** Value of a model parameter. Integers within ±(2^53 − 1). */
export type ParameterValue = boolean | number | string;

/** Integers from `minimum` to `maximum`, both included. */
export interface ParameterRange {
  readonly minimum: number;
  readonly maximum: number;
}

export interface ParameterDefinition {
  readonly type: 'bool' | 'int' | 'str';
  readonly description: string;
  /** What a device has that was not told otherwise. */
  readonly initial: ParameterValue;
  /** With this value the device is as one that does not know the parameter. Absent: it cannot be switched off. */
  readonly off?: ParameterValue;
  /** Values this implementation can have. Absent: all of the type. */
  readonly allowed?: readonly (ParameterValue | ParameterRange)[];
  /** Characters that a string can have. */
  readonly maximumLength?: number;
}

export type ParameterDefinitions = Readonly<Record<string, ParameterDefinition>>;

/**
 * What a guest can tell of a device: two devices of one model with equal parameters are interchangeable, no matter who built
 * them.
 */
export interface DeviceModel {
  /** For instance `devstate.org/nvme`. It never changes while the model evolves. */
  readonly uri: string;
  readonly parameters: Readonly<Record<string, ParameterValue>>;
  /** What the implementation knows of the parameters; absent where only the values are known, as in a blob. */
  readonly definitions?: ParameterDefinitions;
}

/** Whether an implementation can have a parameter at this value. */
export function allows(definition: ParameterDefinition, value: ParameterValue): boolean {
  if (typeof value !== TYPE_OF[definition.type]) return false;
  if (definition.type === 'int' && !Number.isSafeInteger(value)) return false;
  const { maximumLength, allowed } = definition;
  if (maximumLength !== undefined && String(value).length > maximumLength) return false;
  if (allowed === undefined) return true;
  return allowed.some((entry) =>
    typeof entry === 'object'
      ? (value as number) >= entry.minimum && (value as number) <= entry.maximum
      : entry === value,
  );
}

const TYPE_OF = { bool: 'boolean', int: 'number', str: 'string' } as const;

/**
 * Every reason why the state of the device `source` cannot be loaded into the device `destination`, as sentences; empty when
 * there is none. A parameter at its off value is as good as absent.
 */
export function modelDifferences(source: DeviceModel, destination: DeviceModel): string[] {
  if (source.uri !== destination.uri)
    return [`model is ${source.uri} at the source, ${destination.uri} at the destination`];
  const names = new Set([...Object.keys(source.parameters), ...Object.keys(destination.parameters)]);
  return [...names].sort().flatMap((name) => parameterDifference(name, source, destination) ?? []);
}

function parameterDifference(
  name: string,
  source: DeviceModel,
  destination: DeviceModel,
): string | undefined {
  const from = own(source.parameters, name);
  const to = own(destination.parameters, name);
  if (from === to) return undefined;
  if (from === undefined) {
    if (to === own(destination.definitions, name)?.off) return undefined;
    return `parameter ${name} is not known at the source, ${text(to)} at the destination`;
  }
  if (to === undefined) {
    if (from === own(source.definitions, name)?.off) return undefined;
    return `parameter ${name} is ${text(from)} at the source, not known at the destination`;
  }
  const definition = own(destination.definitions, name);
  const difference = `parameter ${name} is ${text(from)} at the source, ${text(to)} at the destination`;
  if (definition === undefined || allows(definition, from)) return difference;
  return `${difference}, which cannot have ${text(from)}`;
}

/** The parameters at values that the destination could have but has not: what to start it with. */
export function remedies(source: DeviceModel, destination: DeviceModel): string[] {
  if (source.uri !== destination.uri) return [];
  return Object.entries(source.parameters).flatMap(([name, value]) => {
    const definition = own(destination.definitions, name);
    if (own(destination.parameters, name) === value || definition === undefined) return [];
    return allows(definition, value) ? [`${name}=${value}`] : [];
  });
}

/** Not what every object has: a peer may name a parameter `constructor`. */
function own<T>(record: Readonly<Record<string, T>> | undefined, name: string): T | undefined {
  return record !== undefined && Object.hasOwn(record, name) ? record[name] : undefined;
}

function text(value: ParameterValue | undefined): string {
  return JSON.stringify(value);
}

/** The model as JSON, in the shape of the proposal: what a manager compares without starting anything. */
export function modelJson(model: DeviceModel): unknown {
  const parameters = Object.entries(model.definitions ?? {}).map(([name, definition]) => [
    name,
    {
      type: definition.type,
      description: definition.description,
      init_value: model.parameters[name] ?? definition.initial,
      ...(definition.off === undefined ? {} : { off_value: definition.off }),
      ...(definition.allowed === undefined ? {} : { allowed_values: definition.allowed.map(allowedText) }),
      ...(definition.maximumLength === undefined ? {} : { maximum_length: definition.maximumLength }),
    },
  ]);
  return { models: { [model.uri]: { params: Object.fromEntries(parameters) } } };
}

function allowedText(entry: ParameterValue | ParameterRange): ParameterValue {
  return typeof entry === 'object' ? `${entry.minimum}-${entry.maximum}` : entry;
}
