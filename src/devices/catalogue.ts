// SPDX-License-Identifier: Apache-2.0
/** Everything this devstate knows of formats beyond the registry: how to explain them, convert them, take them apart. */

import type { Converter, FormatDescription, ValueAdapter } from '../formats/index.js';
import { alderDescription } from './nvme/alder/index.js';

/** Formats whose records can be explained, by name. */
export const formatDescriptions: readonly FormatDescription[] = [alderDescription];

export const converters: readonly Converter[] = [];

/** Formats that can be given and taken value by value. */
export const valueAdapters: readonly ValueAdapter[] = [];
