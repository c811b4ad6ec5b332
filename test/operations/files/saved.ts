// SPDX-License-Identifier: Apache-2.0
/** Blobs of a real controller's state, saved while its guest had work under way. */

import { join } from 'node:path';
import { EnvelopeEncoder, type EnvelopeHeader, parseUuid } from '../../../src/formats/index.js';
import { createRig, DATA, imageFolder, type Rig, type Vendor } from '../../devices/nvme/rig.js';

const FLUSH = 0;
const READ = 2;

export interface SavedOptions {
  readonly vendor?: Vendor;
  /** Name of the format. Default: the vendor's own. */
  readonly format?: string;
  /** Of the envelope: compressions. */
  readonly features?: string[];
  readonly parameters?: Record<string, string | number>;
  /** What the guest does before the device is quiesced, beside what it does always. */
  readonly more?: (rig: Rig) => Promise<unknown>;
}

/** A blob of some KiB: two queue pairs that have wrapped, features, an event request, commands that wait for their completion. */
export async function savedBlob(
  test: { teardown(work: () => void): unknown },
  {
    vendor = 'alder',
    format = `org.devstate.nvme.${vendor}`,
    features = [],
    parameters = {},
    more,
  }: SavedOptions = {},
): Promise<Uint8Array> {
  const path = join(imageFolder(test), 'disk');
  const rig = createRig({ vendor, path, size: 1024 * 1024, parameters });
  try {
    rig.useMsix(5);
    await rig.enable();
    await rig.createPair(1, 100);
    await rig.createPair(3, 16, { cqEntries: 4, vector: 2 });
    for (let i = 0; i < 130; i++) await rig.run(1, { opcode: READ, nsid: 1, prp1: DATA });
    await rig.admin({ opcode: 0x7f });
    await rig.admin({ opcode: 9, cdw10: 9, cdw11: 0x10003 });
    rig.queue(0, { opcode: 0x0c, cid: 0x200 });
    rig.submit(0);
    await more?.(rig);
    for (let i = 0; i < 20; i++) rig.queue(1, { opcode: FLUSH, nsid: 1 });
    rig.submitAll(1, 20);
    await rig.device.quiesce();
    const { model, producer, formats } = rig.device;
    const chosen = formats.find(({ name }) => name === format);
    if (chosen === undefined) throw new Error(`${vendor} has no format ${format}`);
    const encoder = new EnvelopeEncoder({
      format: chosen.uuid,
      version: chosen.version,
      model: model.uri,
      parameters: { ...model.parameters },
      producer,
      stream: parseUuid('11111111-2222-4333-8444-555555555555'),
      features,
      other: {},
    } satisfies EnvelopeHeader);
    const parts = [encoder.header()];
    for await (const { type, optional, payload } of chosen.save('final')) {
      parts.push(...encoder.record(type, optional === true ? 1 : 0, payload).map((part) => part.slice()));
    }
    return new Uint8Array(Buffer.concat([...parts, encoder.end()]));
  } finally {
    await rig.image.close();
  }
}
