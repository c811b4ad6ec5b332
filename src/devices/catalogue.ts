// SPDX-License-Identifier: Apache-2.0
/** Everything this devstate knows of formats beyond the registry: how to explain them, convert them, take them apart. */

import {
  type Converter,
  controllerStateDescription,
  type FormatDescription,
  nvmeDescription,
  nvmeValues,
  pciFunctionDescription,
  type ValueAdapter,
  virtioDescription,
} from '../formats/index.js';
import { counterDescription } from './counter/index.js';
import { alderDescription } from './nvme/alder/index.js';
import { birchDescription } from './nvme/birch/index.js';
import { nvmeConverters } from './nvme/converters.js';
import { sampleDescription } from './sample/index.js';

/** Formats whose records can be explained, by name. */
export const formatDescriptions: readonly FormatDescription[] = [
  alderDescription,
  birchDescription,
  counterDescription,
  nvmeDescription,
  pciFunctionDescription,
  sampleDescription,
  controllerStateDescription,
  virtioDescription,
];

export const converters: readonly Converter[] = nvmeConverters;

/** Formats that can be given and taken value by value. */
export const valueAdapters: readonly ValueAdapter[] = [nvmeValues];
