// SPDX-License-Identifier: Apache-2.0
/** The source's device runs again when it has its image, however slow the disk is that the destination gives it back on. */
import { join } from 'node:path';
import t from 'tap';
import { ImageFile } from '../../../src/devices/nvme/index.js';
import { DevstateError } from '../../../src/errors.js';
import { runAgain } from '../../../src/operations/migrate/rollback.js';
import { Errno, MigrationState } from '../../../src/wire/index.js';
import { socketFolder } from '../../support/served.js';
import { serveNvme } from '../nvme-servers.js';

/** How long the device is refused at least, ms. */
const REFUSED_MS = 2500;

t.test('a destination that takes seconds to give the image back', async (t) => {
  const path = join(socketFolder(t), 'image');
  const served = serveNvme(t, { image: path });
  const manager = await served.manager();
  await manager.setState(MigrationState.STOP_COPY);
  // As another host's server holds it.
  const other = ImageFile.open({ path, lock: true });
  let first: number | undefined;
  const setState = async (state: MigrationState): Promise<void> => {
    try {
      await manager.setState(state);
    } catch (error) {
      if (!(error instanceof DevstateError) || error.errno !== Errno.EBUSY) throw error;
      first ??= performance.now();
      if (performance.now() - first > REFUSED_MS) await other.unlock();
      throw error;
    }
  };
  await runAgain({ device: { setState } });
  t.ok(first !== undefined, 'it was refused');
  t.notOk(other.locked);
  t.equal(await manager.state(), MigrationState.RUNNING);
  other.close();
});
