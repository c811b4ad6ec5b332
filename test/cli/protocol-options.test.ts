// SPDX-License-Identifier: Apache-2.0
/** Options that choose a migration protocol: for those who serve a device, and for those who speak to one. */

import { Command } from 'commander';
import t from 'tap';
import {
  protocolOption,
  type ServedProtocolOptions,
  servedProtocolOptions,
  servedProtocols,
} from '../../src/cli/options.js';
import { DevstateError } from '../../src/errors.js';

/** What the options make of a command line; the code of what is refused. */
function serve(...args: string[]): ReturnType<typeof servedProtocols> | string {
  const command = quiet();
  for (const option of servedProtocolOptions()) command.addOption(option);
  try {
    return servedProtocols(command.parse(args, { from: 'user' }).opts<ServedProtocolOptions>());
  } catch (error) {
    return codeOf(error);
  }
}

function quiet(): Command {
  return new Command().exitOverride().configureOutput({ writeErr: () => {} });
}

function codeOf(error: unknown): string {
  return error instanceof DevstateError ? error.code : (error as { code: string }).code;
}

t.test('who serves a device', async (t) => {
  const region = (mapped: boolean) => ({ migrationRegion: { mapped } });
  t.strictSame(serve(), { migration: 'v2', ...region(false) });
  t.strictSame(serve('--migration', 'v1'), { migration: 'v1', ...region(false) });
  t.strictSame(serve('--migration', 'both', '--migration-mapped'), { migration: 'both', ...region(true) });
  t.equal(serve('--migration-mapped'), 'DEVSTATE_E_USAGE', 'there is no region to map');
  t.equal(serve('--migration', 'v3'), 'commander.invalidArgument');
});

t.test('who speaks to one', async (t) => {
  const speak = (...args: string[]): string => {
    try {
      return quiet().addOption(protocolOption()).parse(args, { from: 'user' }).opts<{ protocol: string }>()
        .protocol;
    } catch (error) {
      return codeOf(error);
    }
  };
  t.equal(speak(), 'auto');
  for (const protocol of ['v1', 'v2', 'auto']) t.equal(speak('--protocol', protocol), protocol);
  t.equal(speak('--protocol', 'v3'), 'commander.invalidArgument');
});
