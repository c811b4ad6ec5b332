// SPDX-License-Identifier: Apache-2.0
/**
 * What an open file descriptor is, by what Linux says of it in /proc and by fstat(2). The file itself is not touched, so
 * one that somebody made to hang does no harm.
 */
import { fstat, readlinkSync } from 'node:fs';
import { promisify } from 'node:util';
import { FileType, native, Seal } from '../../native/index.js';
import type { Fd } from '../../transport/index.js';

/** What a descriptor is. Sizes are in bytes. */
export type DescriptorKind =
  | {
      readonly kind: 'memfd';
      readonly name: string;
      readonly size: number;
      readonly seals: readonly string[];
    }
  | { readonly kind: 'file'; readonly path: string; readonly size: number }
  | { readonly kind: 'eventfd' }
  | {
      readonly kind: 'socket';
      /** `unix`, `inet`, `inet6` or its number; `stream`, `datagram` or its number. */
      readonly family: string;
      readonly type: string;
      readonly listening: boolean;
    }
  | { readonly kind: 'vfio-container' }
  | { readonly kind: 'vfio-group'; readonly group: string }
  /** `path` of a device that was opened by itself; null if a group gave it. */
  | { readonly kind: 'vfio-device'; readonly path: string | null }
  | { readonly kind: 'iommufd' }
  | { readonly kind: 'kvm'; readonly what: string }
  | { readonly kind: 'tun' | 'vhost' | 'device'; readonly path: string }
  | { readonly kind: 'other'; readonly what: string };

const statOf = promisify(fstat);

const SEAL_NAMES = Object.entries(Seal);
/** AF_* and SOCK_*. */
const FAMILIES: Readonly<Record<number, string>> = { 1: 'unix', 2: 'inet', 10: 'inet6' };
const SOCKET_TYPES: Readonly<Record<number, string>> = { 1: 'stream', 2: 'datagram' };
const CHARACTER_DEVICE = 0o020000;

/** @throws if Linux cannot tell: the descriptor is closed */
export async function describeDescriptor(fd: Fd): Promise<DescriptorKind> {
  const link = readlinkSync(`/proc/self/fd/${fd.number}`);
  const anonymous = /^anon_inode:\[?([^\]]*)\]?$/.exec(link)?.[1];
  if (anonymous !== undefined) return anonymousKind(anonymous);
  if (link.startsWith('socket:')) return socketKind(fd);
  if (link.startsWith('/dev/')) {
    // A file of shared memory is there, too.
    const { mode } = await statOf(fd.number);
    if ((mode & FileType.mask) === CHARACTER_DEVICE) return deviceKind(link);
  }
  return fileKind(fd, link);
}

function anonymousKind(name: string): DescriptorKind {
  if (name === 'eventfd') return { kind: 'eventfd' };
  if (name === 'vfio-device') return { kind: 'vfio-device', path: null };
  if (name.startsWith('kvm-')) return { kind: 'kvm', what: name };
  return { kind: 'other', what: name };
}

function socketKind(fd: Fd): DescriptorKind {
  const info = new Int32Array(3);
  native.socketInfo(fd.number, info);
  const [family = 0, type = 0, listening = 0] = info;
  return {
    kind: 'socket',
    family: FAMILIES[family] ?? String(family),
    type: SOCKET_TYPES[type] ?? String(type),
    listening: listening !== 0,
  };
}

function deviceKind(path: string): DescriptorKind {
  if (path === '/dev/vfio/vfio') return { kind: 'vfio-container' };
  if (path.startsWith('/dev/vfio/devices/')) return { kind: 'vfio-device', path };
  const group = /^\/dev\/vfio\/((?:noiommu-)?\d+)$/.exec(path)?.[1];
  if (group !== undefined) return { kind: 'vfio-group', group };
  if (path === '/dev/iommu') return { kind: 'iommufd' };
  if (path === '/dev/kvm') return { kind: 'kvm', what: 'kvm' };
  if (path === '/dev/net/tun') return { kind: 'tun', path };
  if (path.startsWith('/dev/vhost-')) return { kind: 'vhost', path };
  return { kind: 'device', path };
}

async function fileKind(fd: Fd, link: string): Promise<DescriptorKind> {
  const { size } = await statOf(fd.number);
  const seals = native.getSeals(fd.number);
  const name = /^\/memfd:(.*) \(deleted\)$/s.exec(link)?.[1];
  if (name === undefined || seals < 0) return { kind: 'file', path: link, size };
  const set = SEAL_NAMES.filter(([, bit]) => (seals & bit) !== 0).map(([name]) => name);
  return { kind: 'memfd', name, size, seals: set };
}
