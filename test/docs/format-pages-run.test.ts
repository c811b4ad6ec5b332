// SPDX-License-Identifier: Apache-2.0
/** The pages about states and their formats: their blocks, run as one shell session each, as they stand. */

import t from 'tap';
import { runPage } from './run-page.js';

// Some thirty commands, each a process of its own.
t.setTimeout(900_000);

t.test('docs/formats.md', async (t) => {
  const { code, output } = await runPage(t, 'docs/formats.md');
  t.equal(code, 0, output);
  t.match(output, /Format: +org\.example\.adder 1\.0.*no difference.*board = "A-7"/s);
});

t.test('docs/inspect.md', async (t) => {
  const { code, output } = await runPage(t, 'docs/inspect.md');
  t.equal(code, 0, output);
  t.match(output, /lost: the health counters.*4 differences, compared as org\.devstate\.nvme\.alder 1\.0/s);
  t.match(output, /Opaque: +343 B of virtio-vfio.*Compatible: +yes.*dbus-vmstate\.disk0\.bin/s);
});
