// SPDX-License-Identifier: Apache-2.0
/**
 * What a manager leaves with the source's device server before it changes anything that only it could undo. Should it
 * die, `devstate recover` finds the note there and puts the source back.
 */

import type { MigrationClient } from '../../client/index.js';
import { packDocument, unpackDocument } from '../../documents/index.js';
import { PciView, SettingsChange } from '../../qemu/index.js';
import * as z from '../../zod.js';

/** What was changed of the migration settings of two QEMUs. */
const ChangedSettings = z.object({ source: SettingsChange, destination: SettingsChange });
export type ChangedSettings = z.infer<typeof ChangedSettings>;

const Note = z.object({
  /** QEMU's id of the device. */
  id: z.string(),
  /** The ids of all devices that migrate with it. */
  devices: z.array(z.string()),
  /** QEMU's view of it as it was, COMMAND included; from when the VM has stopped. */
  view: PciView.exactOptional(),
  /** Notes of older managers have none. */
  settings: ChangedSettings.exactOptional(),
  /** The sockets to which the destination's QEMU has its devices connected, by id, as far as it tells: it is known by them. */
  destination: z.record(z.string(), z.string()).exactOptional(),
  /** The destination was about to be told to run the VM: it may have run there since, and written to its disks. */
  mayRunThere: z.boolean().exactOptional(),
  /** Whether the VM ran. */
  running: z.boolean(),
  /** QEMU was about to execute another program (cpr-exec). */
  exec: z.boolean().exactOptional(),
  /** QEMU was made to release the device's eventfds: all of `view` has to be replayed, not COMMAND alone. */
  muted: z.boolean().exactOptional(),
});
export type Note = z.infer<typeof Note>;

/** What a note has of an operation, whichever moment it is of. */
export interface Noted {
  readonly settings: ChangedSettings | undefined;
  /** See {@link Note}. */
  readonly destinationSockets?: Readonly<Record<string, string>> | undefined;
}

export function noted({ settings, destinationSockets }: Noted): Pick<Note, 'settings' | 'destination'> {
  return {
    ...(settings === undefined ? {} : { settings }),
    ...(destinationSockets === undefined ? {} : { destination: destinationSockets }),
  };
}

export async function writeNote(device: MigrationClient, note: Note): Promise<void> {
  await device.setNote(packDocument(note));
}

/** First byte of a note of an older manager: JSON. No packed map begins with it. */
const JSON_OBJECT = 0x7b;

function parseJson(bytes: Uint8Array): unknown {
  return JSON.parse(new TextDecoder().decode(bytes));
}

/** The note, or undefined when there is none or it is not one of ours. */
export async function readNote(device: MigrationClient): Promise<Note | undefined> {
  const bytes = await device.note();
  if (bytes.length === 0) return undefined;
  try {
    return Note.parse(bytes[0] === JSON_OBJECT ? parseJson(bytes) : unpackDocument(bytes));
  } catch {
    return undefined;
  }
}

export async function clearNote(device: MigrationClient): Promise<void> {
  await device.setNote(new Uint8Array(0));
}
