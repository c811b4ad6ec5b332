// SPDX-License-Identifier: Apache-2.0
/**
 * Whether the destination's device server works on the image that the source's has. Paths do not tell, and on two hosts
 * neither do inode numbers; the lock does, wherever the file system carries it.
 *
 *     source holds the lock, all of the file     the destination sees a lock at byte X
 *     source leaves X out                        it sees none at X, and one at Y
 *     source locks X again                       it sees one at X
 */

import { randomInt } from 'node:crypto';
import { MIN_IMAGE_BYTE } from '../wire/index.js';
import type { MigrationClient } from './migration-client.js';

type ImageWitness = Pick<MigrationClient, 'images' | 'leaveOut'>;

/** A device server and where it is found. */
export interface ImageEnd {
  readonly path: string;
  readonly device: ImageWitness;
}

/** randomInt takes no larger range. */
const RANGE = 2 ** 47;

/** @returns what speaks against it; nothing has been changed */
export async function whyOtherImages(source: ImageEnd, destination: ImageEnd): Promise<string | undefined> {
  const marked = MIN_IMAGE_BYTE + 2 * randomInt(RANGE);
  const beside = marked + 1;
  const [here, there] = [await source.device.images(marked), await destination.device.images(marked)];
  if (here === undefined && there === undefined) return undefined;
  if (here === undefined || there === undefined) {
    const silent = here === undefined ? source.path : destination.path;
    return `the server behind ${silent} does not say which image it works on`;
  }
  if (here.length !== there.length)
    return `it has ${here.length} images at the source and ${there.length} at the destination`;
  const names = (images: typeof here): string => images.map(({ path }) => path ?? 'not told').join(', ');
  const isOnePath = names(here) === names(there);
  const seen = isOnePath
    ? ', which is another file there (another host or mount namespace, or it was replaced)'
    : '';
  const other = `the destination works on another image (${names(there)}${seen}) than the source (${names(here)})`;
  const unlocked = here.filter(({ locked }) => !locked);
  if (unlocked.length > 0)
    return `its source has not locked its image (${names(unlocked)}), so it cannot be proven that the destination's is the same`;
  if (there.some(({ free }) => free))
    return `${other}, or one on a file system that does not carry the source's lock`;
  try {
    await source.device.leaveOut(marked);
    const isSame = (await destination.device.images(marked))?.every(({ free }) => free) === true;
    const isApart = (await destination.device.images(beside))?.every(({ free }) => !free) === true;
    if (!isSame || !isApart) return `${other}, which somebody else has locked`;
  } finally {
    await source.device.leaveOut(0);
  }
  const again = await destination.device.images(marked);
  return again?.some(({ free }) => free) === true ? other : undefined;
}
