// SPDX-License-Identifier: Apache-2.0
/** The device of libvfio-user's sample server. */

export { sampleDescription } from './describe.js';
export { SampleDevice } from './sample-device.js';
export { BAR0_SIZE, BAR1_SIZE, SampleRecord } from './state.js';
