// SPDX-License-Identifier: Apache-2.0
/** What the new QEMU's command line must say, and what it must leave to us. Pure. */

import { resolve } from 'node:path';

/** Options with which a QEMU does not do what is expected of it here, and what to do about them. */
const NOT_THESE: Readonly<Record<string, string>> = {
  incoming: 'devstate adds it',
  daemonize: 'it lives on without, and devstate must see it end',
};

/** The name of an option that an argument is; QEMU takes one dash or two. */
function optionOf(argument: string): string | undefined {
  return /^--?([a-z].*)$/.exec(argument)?.[1];
}

/** Why a command line cannot be the new QEMU's; none if it can. */
export function commandObstacles(command: readonly string[]): string[] {
  return command.flatMap((argument) => {
    const why = NOT_THESE[optionOf(argument) ?? ''];
    return why === undefined ? [] : [`the new QEMU's command line has ${argument}: leave it out, ${why}`];
  });
}

/** Absolute paths of the UNIX sockets at which a command line's QEMU offers QMP by `-qmp`, in its order. */
export function qmpSockets(command: readonly string[]): string[] {
  return command.flatMap((argument, index) => {
    const option = optionOf(command[index - 1] ?? '');
    if (option !== 'qmp' && option !== 'qmp-pretty') return [];
    // A comma in a value is written twice.
    const path = /^unix:((?:[^,]|,,)+)/.exec(argument)?.[1]?.replaceAll(',,', ',');
    return path === undefined ? [] : [resolve(path)];
  });
}
