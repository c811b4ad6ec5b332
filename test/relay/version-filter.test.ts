// SPDX-License-Identifier: Apache-2.0
/** What a relay offers of fds is what its process can have, whatever the server behind it offers; ranges are the server's. */

import { spawnSync } from 'node:child_process';
import t from 'tap';
import { decodeVersion, encodeVersion, PROTOCOL_MAJOR, PROTOCOL_MINOR } from '../../src/wire/index.js';

const MODULE = new URL('../../src/relay/version-filter.js', import.meta.url).href;
const PROGRAM = `
  const { filterVersion } = await import(${JSON.stringify(MODULE)});
  process.stdout.write(Buffer.from(filterVersion(Buffer.from(process.argv[1], 'hex'))).toString('hex'));
`;

/** An answer as a relay passes it on whose process may open so many files. */
function filtered(answer: Uint8Array, files: number) {
  const script = `ulimit -n ${files}; exec "$0" --input-type=module -e "$1" "$2"`;
  const args = ['-c', script, process.execPath, PROGRAM, Buffer.from(answer).toString('hex')];
  const { status, stdout, stderr } = spawnSync('/bin/sh', args, { encoding: 'utf8' });
  if (status !== 0) throw new Error(stderr);
  const bytes = Buffer.from(stdout, 'hex');
  return decodeVersion(new DataView(bytes.buffer, bytes.byteOffset), 0, bytes.length).capabilities;
}

t.test('limits', async (t) => {
  const capabilities = {
    maxMsgFds: 200,
    maxDataXferSize: 4096,
    maxDmaMaps: 65535,
    pageSizes: 4096,
    writeMultiple: false,
    twinSocket: false,
  };
  const answer = encodeVersion({ major: PROTOCOL_MAJOR, minor: PROTOCOL_MINOR, capabilities });
  t.match(filtered(answer, 1_000), { maxMsgFds: 200, maxDataXferSize: 4096, maxDmaMaps: 65535 });
  t.match(filtered(answer, 300), { maxMsgFds: 63, maxDataXferSize: 4096, maxDmaMaps: 65535 });
  const few = encodeVersion({
    major: PROTOCOL_MAJOR,
    minor: PROTOCOL_MINOR,
    capabilities: { ...capabilities, maxMsgFds: 8, maxDmaMaps: 10 },
  });
  t.match(filtered(few, 300), { maxMsgFds: 8, maxDmaMaps: 10 }, "the server's own");
  const silent = Buffer.concat([answer.subarray(0, 4), Buffer.from('{"capabilities":{}}\0')]);
  t.match(
    filtered(silent, 300),
    { maxMsgFds: 1, maxDmaMaps: 65535 },
    'the defaults of one that says nothing',
  );
});
