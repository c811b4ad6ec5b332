// SPDX-License-Identifier: Apache-2.0
/** VMMs and managers that send anything but what they should: the relay serves the next one, and nothing is left of them. */

import fc from 'fast-check';
import t from 'tap';
import { closeAll, type Fd } from '../../src/transport/index.js';
import { Command, DmaMapFlag, Errno, FeatureFlag, PciIrq } from '../../src/wire/index.js';
import { eventfd, memfd } from '../support/memory.js';
import { access, dmaMap, dmaUnmap, setIrqs, u32 } from '../support/payloads.js';
import { RawClient } from '../support/raw-client.js';
import { SCRATCH_ID } from '../support/scratch-device.js';
import { outcome, resources, until } from '../support/served.js';
import { RelayBed } from './support.js';

/** Commands with a payload that is valid, for somebody. */
const COMMANDS: readonly [number, Uint8Array][] = [
  [Command.VERSION, Buffer.from('\0\0\x02\0{"capabilities":{"twin_socket":{"supported":true}}}\0')],
  [Command.DMA_MAP, dmaMap(0x1000, 0x1000)],
  [Command.DMA_UNMAP, dmaUnmap(0x1000, 0x1000)],
  [Command.DEVICE_GET_INFO, u32(16, 0, 0, 0)],
  [Command.DEVICE_GET_REGION_INFO, u32(64, 0, 0, 0, 0, 0, 0, 0)],
  [Command.DEVICE_GET_REGION_IO_FDS, u32(16, 0, 0, 0)],
  [Command.DEVICE_SET_IRQS, setIrqs(0x24, 2, 0, 3)],
  [Command.REGION_READ, access(0, 7, 4)],
  [Command.REGION_WRITE, access(4, 7, 4, u32(6))],
  [Command.REGION_WRITE, access(0, 9, 4, u32(2))],
  [Command.DMA_READ, u32(0x1000, 0, 16, 0)],
  [Command.DMA_WRITE, u32(0x1000, 0, 4, 0, 1)],
  [Command.DEVICE_RESET, new Uint8Array(0)],
  ...[1, 2, 3, 4, 6].map((state): [number, Uint8Array] => [
    Command.DEVICE_FEATURE,
    u32(16, 2 | FeatureFlag.SET, state, 0),
  ]),
  ...[0xd501, 0xd502, 0xd503, 1].map((feature): [number, Uint8Array] => [
    Command.DEVICE_FEATURE,
    u32(4096, feature | FeatureFlag.GET),
  ]),
  [Command.MIG_DATA_READ, u32(108, 100)],
  [Command.MIG_DATA_WRITE, u32(12, 4, 0)],
  [99, u32(1)],
];

const step = fc.record({
  which: fc.nat(COMMANDS.length - 1),
  /** Bytes to set, by position in the payload. */
  changes: fc.array(fc.tuple(fc.nat(40), fc.nat(255)), { maxLength: 3 }),
  cut: fc.option(fc.nat(40), { nil: undefined }),
  flags: fc.constantFrom(0, 0, 0, 0x10, 1, 0x21),
  fds: fc.nat(3),
});

for (const role of ['VMM', 'manager'] as const) {
  t.test(`a hostile ${role}`, async (t) => {
    const bed = new RelayBed(t, { holdMs: 100 });
    bed.serveScratch({ migration: 'both' });
    const beside = role === 'manager' ? await bed.vmm() : undefined;
    const honest = async (): Promise<void> => {
      const vmm = beside ?? (await bed.vmm());
      const bytes = new Uint8Array(4);
      await vmm.reset();
      await vmm.regionRead(0, 0, bytes);
      t.equal(new DataView(bytes.buffer).getUint32(0, true), SCRATCH_ID);
      if (beside === undefined) vmm.close();
    };
    const quiet = async (): Promise<ReturnType<typeof resources>> => {
      if (beside === undefined)
        await until(() => bed.log.filter((line) => line.endsWith('VMM has left')).length === visits);
      else await (await bed.manager()).client.close();
      return resources();
    };
    let visits = 1;
    await honest();
    let steady = await quiet();
    await fc.assert(
      fc.asyncProperty(fc.array(step, { minLength: 1, maxLength: 12 }), async (steps) => {
        const client = await RawClient.connect(role === 'VMM' ? bed.listenPath : bed.migrationPath);
        await client.version();
        for (const { which, changes, cut, flags, fds: count } of steps) {
          const [command, valid] = COMMANDS[which]!;
          const payload = Uint8Array.from(valid).subarray(0, cut ?? valid.length);
          for (const [at, value] of changes) if (at < payload.length) payload[at] = value;
          const fds: Fd[] = Array.from({ length: count }, (_, i) => (i === 0 ? memfd(0x1000) : eventfd()));
          client.send(client.message(command, payload, { flags }), fds);
          closeAll(fds);
        }
        client.finish();
        await client.closed();
        visits += 2;
        await honest();
        const now = await quiet();
        // The VMM beside a hostile manager keeps what it has.
        if (now.fds !== steady.fds || now.maps !== steady.maps) t.same(now, steady, JSON.stringify(steps));
        steady = now;
      }),
      { numRuns: 60 },
    );
  });
}

t.test('without a server only so much is taken', async (t) => {
  const bed = new RelayBed(t, { holdMs: 300 });
  const { server } = bed.serveScratch();
  const vmm = await bed.vmm();
  await server.close();
  await bed.said('is gone');
  const [memory, irq] = [memfd(4096), eventfd()];
  t.teardown(() => {
    memory.close();
    irq.close();
  });
  const flags = 0x24;
  const wrong = [
    vmm.setIrqs({ flags, index: PciIrq.MSIX, start: 0, count: 0xffff_ffff }),
    vmm.setIrqs({ flags, index: 77, start: 0, count: 1 }, { fds: [irq] }),
    vmm.dmaMap({ flags: DmaMapFlag.READ, offset: 0, address: 0, size: 0 }, memory),
  ];
  const right = [
    vmm.setIrqs({ flags, index: PciIrq.MSIX, start: 0, count: 1 }, { fds: [irq] }),
    vmm.dmaMap({ flags: DmaMapFlag.READ, offset: 0, address: 0, size: 4096 }, memory),
  ];
  t.same(await Promise.all(wrong.map(outcome)), [Errno.ETIMEDOUT, Errno.ETIMEDOUT, Errno.ETIMEDOUT]);
  t.same(await Promise.all(right.map(outcome)), [0, 0]);
});

t.test('a VMM that floods a relay without a server', async (t) => {
  const bed = new RelayBed(t);
  const { server } = bed.serveScratch();
  const client = await RawClient.connect(bed.listenPath);
  await client.version();
  await server.close();
  await bed.said('is gone');
  const write = access(0x100, 0, 4, u32(1));
  for (let i = 0; i < 5000; i++) client.send(client.message(Command.REGION_WRITE, write, { flags: 0x10 }));
  await client.closed();
  t.ok(bed.log.some((line) => line.includes('more than can be kept')));
});
