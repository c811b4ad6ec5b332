// SPDX-License-Identifier: Apache-2.0
/** What an fd of a bundle is, and how its receiver makes sure: a number out of a message proves nothing. */

import { readlinkSync } from 'node:fs';
import { malformed } from '../documents/index.js';
import { check, FileType, native, Seal } from '../native/index.js';
import type { Fd } from '../transport/index.js';

export const FdKind = {
  /** A connected UNIX stream socket. */
  SOCKET: 1,
  /** A listening UNIX stream socket. */
  LISTENER: 2,
  /** Memory that processes share: a memfd, or a file of any file system that can be mapped. */
  MEMORY: 3,
  EVENTFD: 4,
  /** A memfd with all seals: it does not change any more. */
  SEALED: 5,
  /** A regular file or a block device, with whatever lock its open file holds. */
  FILE: 6,
  /** The word that says whose the device is (`Lease`). */
  LEASE: 7,
  /** What a client's message brought that no one has looked at yet: of any kind. */
  PASSENGER: 8,
  VFIO_CONTAINER: 16,
  VFIO_GROUP: 17,
  VFIO_DEVICE: 18,
  IOMMUFD: 19,
} as const;
export type FdKind = (typeof FdKind)[keyof typeof FdKind];

const kindNames = Object.keys(FdKind) as (keyof typeof FdKind)[];

/** `SOCKET` → `socket`. */
export function fdKindName(kind: number): string {
  const name = kindNames.find((name) => FdKind[name] === kind);
  return name === undefined ? `kind ${kind}` : name.toLowerCase().replace('_', ' ');
}

const AF_UNIX = 1;
const SOCK_STREAM = 1;
const BLOCK_DEVICE = 0o060000;
const ALL_SEALS = Seal.seal | Seal.shrink | Seal.grow | Seal.write;

/** Facts about one fd, gathered once. */
interface Facts {
  /** Bits of the file type, `S_IFMT`. */
  readonly type: number;
  /** What /proc shows: a path, or `anon_inode:[eventfd]` and the like. */
  readonly link: string;
  readonly fd: number;
}

const isSocket =
  (listening: boolean) =>
  ({ type, fd }: Facts): boolean => {
    if (type !== FileType.socket) return false;
    const info = new Int32Array(3);
    check(native.socketInfo(fd, info), 'examine a socket');
    return info[0] === AF_UNIX && info[1] === SOCK_STREAM && (info[2] !== 0) === listening;
  };

const isRegular = ({ type }: Facts): boolean => type === FileType.regular;

const tests: Readonly<Record<number, (facts: Facts) => boolean>> = {
  [FdKind.SOCKET]: isSocket(false),
  [FdKind.LISTENER]: isSocket(true),
  // A character device too: memory of devices (DAX) is mapped like a file.
  [FdKind.MEMORY]: (facts) => isRegular(facts) || facts.link.startsWith('/dev/dax'),
  [FdKind.EVENTFD]: ({ link }) => link === 'anon_inode:[eventfd]',
  [FdKind.SEALED]: (facts) => isRegular(facts) && (native.getSeals(facts.fd) & ALL_SEALS) === ALL_SEALS,
  [FdKind.FILE]: (facts) => isRegular(facts) || facts.type === BLOCK_DEVICE,
  [FdKind.LEASE]: (facts) => isRegular(facts) && (native.getSeals(facts.fd) & Seal.shrink) !== 0,
  [FdKind.PASSENGER]: () => true,
  [FdKind.VFIO_CONTAINER]: ({ link }) => link === '/dev/vfio/vfio',
  [FdKind.VFIO_GROUP]: ({ link }) => /^\/dev\/vfio\/(noiommu-)?\d+$/.test(link),
  [FdKind.VFIO_DEVICE]: ({ link }) =>
    link === 'anon_inode:[vfio-device]' || /^\/dev\/vfio\/devices\/vfio\d+$/.test(link),
  [FdKind.IOMMUFD]: ({ link }) => link === '/dev/iommu',
};

/** @throws DEVSTATE_E_HANDOFF_BUNDLE unless `fd` is what its label says */
export function requireKind(fd: Fd, kind: number, name: string): void {
  const test = tests[kind];
  if (test === undefined) throw malformed(`${name} is of a kind that is not known here (${kind})`);
  const stat = new Float64Array(4);
  check(native.stat(fd.number, stat), `examine ${name}`);
  const link = readlinkSync(`/proc/self/fd/${fd.number}`);
  if (!test({ type: stat[1]! & FileType.mask, link, fd: fd.number }))
    throw malformed(`${name} should be a ${fdKindName(kind)} and is ${link}`);
}
