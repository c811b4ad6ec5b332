// SPDX-License-Identifier: Apache-2.0
/** Whether two devices look the same to a guest. */

import type { DeviceModel } from './device.js';

/** Every difference between the model that was saved (or offered) and the one here, as sentences; empty when there is none. */
export function modelDifferences(source: DeviceModel, destination: DeviceModel): string[] {
  if (source.uri !== destination.uri)
    return [`model is ${source.uri} at the source, ${destination.uri} at the destination`];
  const names = new Set([...Object.keys(source.parameters), ...Object.keys(destination.parameters)]);
  const differences: string[] = [];
  for (const name of [...names].sort()) {
    const from = source.parameters[name];
    const to = destination.parameters[name];
    if (from !== to)
      differences.push(`parameter ${name} is ${text(from)} at the source, ${text(to)} at the destination`);
  }
  return differences;
}

function text(value: string | number | boolean | undefined): string {
  return value === undefined ? 'not known' : JSON.stringify(value);
}
