// SPDX-License-Identifier: Apache-2.0
/** Shows that the guest is what tests of kernel VFIO count on: the devices, node, the addon. */
import assert from 'node:assert/strict';
import { closeSync, existsSync, openSync, readdirSync, readlinkSync } from 'node:fs';
import { native } from '../../../src/native/index.js';
import { check, finish } from './report.js';

const EDU = '/sys/bus/pci/devices/0000:00:03.0';
const group = readlinkSync(`${EDU}/iommu_group`).split('/').at(-1);

await check('edu is bound to vfio-pci and has a group', () => {
  assert.match(readlinkSync(`${EDU}/driver`), /vfio-pci$/);
  assert.ok(existsSync('/dev/vfio/vfio'));
  assert.ok(existsSync(`/dev/vfio/${group}`));
});

await check('the kernel is the real one: a group opens once', () => {
  const fd = openSync(`/dev/vfio/${group}`, 'r+');
  assert.throws(() => openSync(`/dev/vfio/${group}`, 'r+'), { code: 'EBUSY' });
  closeSync(fd);
  closeSync(openSync(`/dev/vfio/${group}`, 'r+'));
});

if (process.argv.includes('iommufd')) {
  await check('iommufd, character devices and mtty', () => {
    closeSync(openSync('/dev/iommu', 'r+'));
    assert.equal(readdirSync('/dev/vfio/devices').length, 1);
    assert.ok(existsSync('/sys/devices/virtual/mtty/mtty/mdev_supported_types/mtty-1/create'));
  });
}

await check('the addon loads', () => {
  assert.equal(typeof native, 'object');
});

finish();
