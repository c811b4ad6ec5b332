// SPDX-License-Identifier: Apache-2.0
/**
 * The config space as it was when the device stopped for a migration. libvfio-user refuses every region access of a
 * device in STOP_COPY, and a manager reads the config space through the VMM just then.
 */

import { Command, HEADER_LENGTH, messageCommand, REGION_ACCESS_LENGTH, readU64 } from '../wire/index.js';
import { type Message, payloadOf } from './messages.js';
import { isConfigAccess } from './replay-log.js';

export class ConfigShadow {
  readonly #bytes: Uint8Array;

  constructor(bytes: Uint8Array) {
    this.#bytes = bytes;
  }

  /** The payload of the reply to a region access, which is carried out here; undefined if it cannot be. */
  access(request: Message): Uint8Array | undefined {
    const { view, length } = request;
    const command = messageCommand(view);
    if (command !== Command.REGION_READ && command !== Command.REGION_WRITE) return undefined;
    const offset = readU64(view, HEADER_LENGTH);
    const count = view.getUint32(HEADER_LENGTH + 12, true);
    if (!isConfigAccess(view) || offset + count > this.#bytes.length) return undefined;
    const payload = payloadOf(request);
    const head = payload.subarray(0, REGION_ACCESS_LENGTH);
    if (command === Command.REGION_WRITE) {
      if (length !== HEADER_LENGTH + REGION_ACCESS_LENGTH + count) return undefined;
      this.#bytes.set(payload.subarray(REGION_ACCESS_LENGTH), offset);
      return head;
    }
    return Buffer.concat([head, this.#bytes.subarray(offset, offset + count)]);
  }
}
