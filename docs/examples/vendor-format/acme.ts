// SPDX-License-Identifier: Apache-2.0
/**
 * What `devstate inspect` and `devstate convert` are for registered formats, for Acme's:
 * `node dist/examples/vendor-format/acme.js inspect FILE`, `… convert FORMAT IN OUT`.
 */

import { createReadStream, writeFileSync } from 'node:fs';
import { BlobConverter, findPath, inspect, renderInspection } from 'devstate/formats';
import { acmeConverters, acmeDescription } from './acme-format.js';

async function inspectFile(path: string): Promise<void> {
  const inspection = await inspect(createReadStream(path), { formats: [acmeDescription] });
  process.stdout.write(renderInspection(inspection, { fields: true }));
}

async function convertFile(format: string, input: string, output: string): Promise<void> {
  const parts: Uint8Array[] = [];
  const converter = new BlobConverter({
    choose: (header) => {
      const to = acmeConverters.find((one) => one.to.name === format)?.to;
      const way =
        to &&
        findPath(
          { uuid: header.format, major: header.version.major },
          { uuid: to.uuid, major: to.version.major },
          acmeConverters,
        );
      if (way === undefined) throw new Error(`no way leads from ${header.format} to ${format}`);
      return way;
    },
    producer: { name: 'acme/tool', version: '2.0' },
    write: (bytes) => parts.push(bytes.slice()),
  });
  for await (const chunk of createReadStream(input)) converter.push(chunk);
  converter.finish();
  writeFileSync(output, Buffer.concat(parts));
}

const [command, ...args] = process.argv.slice(2);
if (command === 'inspect' && args.length === 1) await inspectFile(args[0]!);
else if (command === 'convert' && args.length === 3) await convertFile(args[0]!, args[1]!, args[2]!);
else throw new Error('usage: acme inspect FILE | acme convert FORMAT IN OUT');
