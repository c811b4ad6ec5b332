// SPDX-License-Identifier: Apache-2.0
/** Devices of the kernel's VFIO move from process to process while they run: `edu`, by a container, or by iommufd. */
import assert from 'node:assert/strict';
import { readlinkSync } from 'node:fs';
import { askToGive, Group } from '../../../src/vfio/index.js';
import { listening, OperatorProcess } from './operators.js';
import { check, finish, remark } from './report.js';

const EDU = '/sys/bus/pci/devices/0000:00:03.0';
const GROUP = readlinkSync(`${EDU}/iommu_group`).split('/').at(-1)!;
const TIMEOUT_MS = 20_000;

await check(
  'the destination goes on where the source was: DMA, interrupt, registers; the source has ended',
  async () => {
    const [destination] = await listening(1);
    const source = new OperatorProcess();
    await source.ask('listen', { groups: [GROUP] });
    await source.ask('setUp');
    await source.ask('dma', 1);
    await source.ask('mark', 0x12345678);
    await source.ask('interrupts');
    await source.ask('acknowledge', 0x20);
    await source.ask('mark', 0x12345678);
    // A DMA that is under way when the device moves: its interrupt comes to the destination.
    const before = await source.ask('registers');
    await askToGive(source.path, destination!.path, TIMEOUT_MS);
    await source.end();
    remark(JSON.stringify(await destination!.ask('inherited')));
    assert.deepEqual(await destination!.ask('registers'), before);
    await destination!.ask('interrupts');
    await destination!.ask('acknowledge', 0x20);
    await destination!.ask('dma', 2);
    assert.throws(() => Group.open(GROUP), { code: 'DEVSTATE_E_VFIO_BUSY' });
    assert.equal(await destination!.ask('unmap'), 0x40000);
    await destination!.ask('map');
    await destination!.ask('dma', 3);
    await destination!.end();
  },
);
finish();
