// SPDX-License-Identifier: Apache-2.0
/** Live migrations of a Linux guest that writes to an NVMe disk of ours all the time, between stock QEMUs. */
import t from 'tap';
import { MigrationLab } from './harness/lab.js';

for (const append of ['', 'pci=nomsi']) {
  t.test(`there and back twice ${append}`, async (t) => {
    const lab = await MigrationLab.create(t, { append, cpus: 2 });
    if (lab === undefined) return;
    const servers = [await lab.serve('a'), await lab.serve('b', { incoming: true })] as const;
    let vm = await lab.startVm({ server: servers[0] });
    await lab.guestWrites(vm);
    for (let move = 1; move <= 4; move++) {
      const next = await lab.startVm({ server: servers[move % 2 === 0 ? 0 : 1], incoming: true });
      const { code, result, stderr } = await lab.migrate(vm, next);
      t.equal(code, 0, `move ${move}`, { stderr });
      t.comment(JSON.stringify(result?.downtime));
      await lab.guestWrites(next);
      await vm.kill();
      vm = next;
    }
    t.same(await lab.finishAndCheck(vm), []);
  });
}
