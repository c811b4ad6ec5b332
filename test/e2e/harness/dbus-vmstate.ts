// SPDX-License-Identifier: Apache-2.0
/** A helper of QEMU's object `dbus-vmstate`: what it saves becomes part of the migration stream. */
import { createClient, defineInterface, type MessageBus } from 'dbus-native';

const NAME = 'org.qemu.VMState1';
const PATH = '/org/qemu/VMState1';
/** Helpers queue for their common name: QEMU asks all in the queue. */
const QUEUE = 0;

export class VmStateHelper {
  /** What QEMU gave to Load(), the last time. */
  loaded: Uint8Array | undefined;
  /** How often QEMU called Save(). */
  saves = 0;
  readonly #bus: MessageBus;

  private constructor(bus: MessageBus) {
    this.#bus = bus;
  }

  /**
   * Connects a helper; resolves when QEMU can find it.
   * @param id unique among the helpers of a bus, below 256 bytes
   * @param save what Save() returns: 1 byte to 1 MiB
   */
  static async start(address: string, id: string, save: () => Uint8Array): Promise<VmStateHelper> {
    const bus = createClient({ busAddress: address, authMethods: ['EXTERNAL'] });
    const helper = new VmStateHelper(bus);
    const vmState = defineInterface({
      name: NAME,
      properties: { Id: { type: 's', access: 'read', get: () => id } },
      methods: {
        Save: {
          out: { data: 'ay' },
          handler: () => {
            helper.saves++;
            return Buffer.from(save());
          },
        },
        Load: {
          in: { data: 'ay' },
          handler: ({ data }: { data: Uint8Array }) => {
            helper.loaded = data;
          },
        },
      },
    });
    await bus.export(PATH, vmState);
    await bus.requestName(NAME, QUEUE);
    return helper;
  }

  /** Leaves the bus. */
  close(): void {
    this.#bus.connection.end();
  }
}
