// SPDX-License-Identifier: Apache-2.0
/** What an operation could leave changed in a QEMU. */

import type { QmpClient } from '../../../src/qemu/index.js';
import { z } from '../../../src/zod.js';

export type Settings = Awaited<ReturnType<typeof settingsOf>>;

/** Everything of a QEMU that an operation could leave changed. */
export async function settingsOf(qmp: QmpClient) {
  const labels = z.array(z.object({ label: z.string() }));
  const names = z.array(z.object({ name: z.string() }));
  const path = { path: '/objects' };
  const [capabilities, parameters, chardevs, objects, fdSets] = await Promise.all([
    qmp.execute('query-migrate-capabilities'),
    qmp.execute('query-migrate-parameters'),
    qmp.execute('query-chardev', { schema: labels }),
    qmp.execute('qom-list', { schema: names, arguments: path }),
    qmp.execute('query-fdsets'),
  ]);
  return {
    capabilities,
    parameters,
    chardevs: chardevs.map(({ label }) => label).sort(),
    objects: objects.map(({ name }) => name).sort(),
    fdSets,
  };
}

/** The same QEMU when it was asked through qtest, which stays. */
export function withQtest(settings: Settings): Settings {
  return {
    ...settings,
    chardevs: [...settings.chardevs, 'devstate-qtest-socket'].sort(),
    objects: [...settings.objects, 'devstate-qtest'].sort(),
  };
}
