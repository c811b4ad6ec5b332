// SPDX-License-Identifier: Apache-2.0
/**
 * A directory cache that several processes fill at once.
 *
 * An entry is a directory. It is built under another name and renamed into place, so an entry that exists is
 * complete, whenever its builder was killed. Builders of one entry exclude each other by a lock that the kernel
 * drops with its holder, so nothing is ever left locked.
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { chmod, mkdir, mkdtemp, readdir, rename, rm } from 'node:fs/promises';
import { homedir } from 'node:os';
import { join } from 'node:path';

/** Where devstate's tools keep what they provision: `$DEVSTATE_CACHE`, or the user's cache directory. */
export function cacheDirectory(environment: NodeJS.ProcessEnv = process.env): string {
  const own = environment.DEVSTATE_CACHE;
  if (own) return own;
  const shared = environment.XDG_CACHE_HOME;
  return join(shared || join(homedir(), '.cache'), 'devstate');
}

/**
 * The cache entry `name`, built by `build` if it does not exist yet.
 *
 * @param build fills the empty directory it is given; if it throws, the directory is removed and nothing is cached
 * @returns the absolute path of the complete entry
 */
export async function cached(name: string, build: (directory: string) => Promise<void>): Promise<string> {
  const cache = cacheDirectory();
  const entry = join(cache, name);
  if (existsSync(entry)) return entry;
  await mkdir(cache, { recursive: true });
  const unlock = await lock(join(cache, `${name}.lock`));
  try {
    if (existsSync(entry)) return entry;
    await removeUnfinished(cache, name);
    const unfinished = await mkdtemp(join(cache, `${name}.unfinished-`));
    try {
      await chmod(unfinished, 0o755);
      await build(unfinished);
      await rename(unfinished, entry);
    } catch (error) {
      await rm(unfinished, { recursive: true, force: true });
      throw error;
    }
    return entry;
  } finally {
    unlock();
  }
}

/** Removes what builders of `name` left that were killed; the caller holds the lock, so none is at work. */
async function removeUnfinished(cache: string, name: string): Promise<void> {
  for (const file of await readdir(cache)) {
    if (file.startsWith(`${name}.unfinished-`)) await rm(join(cache, file), { recursive: true, force: true });
  }
}

/**
 * Takes an exclusive lock on `path`, waiting for it. Node has no flock(2): util-linux's `flock` holds it in a child
 * that lives exactly as long as the pipe to it, so the lock goes when this process does, however it ends.
 */
async function lock(path: string): Promise<() => void> {
  const holder = spawn('flock', [path, 'sh', '-c', 'echo locked && exec cat'], {
    stdio: ['pipe', 'pipe', 'inherit'],
  });
  const failed = once(holder, 'exit').then(([code]) => {
    throw new Error(`flock ${path} ended with code ${code}`);
  });
  failed.catch(() => {});
  await Promise.race([once(holder.stdout, 'data'), failed]);
  return () => holder.stdin.end();
}
