// SPDX-License-Identifier: Apache-2.0
/** Disks: image formats with a header of their own, and raw ones, known by what a guest has put on them. */
import type { FieldMap, FieldValue } from '../fields.js';
import type { ContentFile } from '../foreign/content.js';
import { HeadReader, magicRow, type Signature } from './signature.js';

/** Longest name of a backing file that qcow2 allows. */
const BACKING_NAME_MAX = 1023;
/** Snapshots of a qcow2 image that are listed. */
const SNAPSHOTS_MAX = 64;

/** docs/interop/qcow2.rst of QEMU. All numbers are big endian. */
function describeQcow2(head: Buffer, file?: ContentFile): FieldMap {
  const read = new HeadReader(head);
  const version = read.u32be(4);
  const snapshots = read.u32be(60);
  const backing = backingName(read, file);
  return {
    version,
    virtual_size: read.u64be(24),
    cluster_size: 2 ** Math.min(read.u32be(20), 30),
    backing_file: backing,
    encryption: ['none', 'AES', 'LUKS'][read.u32be(32)] ?? read.u32be(32),
    ...(version >= 3 && (read.u8(79) & 4) !== 0 ? { data_file: 'external' } : {}),
    snapshots,
    ...(snapshots > 0 && file !== undefined ? { list: snapshotsOf(file, read.u64be(64), snapshots) } : {}),
  };
}

function backingName(read: HeadReader, file: ContentFile | undefined): string | null {
  const [offset, length] = [read.u64be(8), read.u32be(16)];
  if (offset === 0 || length === 0 || length > BACKING_NAME_MAX) return null;
  if (file === undefined) return read.text(offset, length);
  return offset + length <= file.size ? Buffer.from(file.read(offset, length)).toString('utf8') : null;
}

/** The table of snapshots: those with VM state hold a whole machine. */
function snapshotsOf(file: ContentFile, at: number, count: number): FieldValue[] {
  const list: FieldValue[] = [];
  for (let index = 0; index < Math.min(count, SNAPSHOTS_MAX); index++) {
    if (at + 40 > file.size) break;
    const read = new HeadReader(Buffer.from(file.read(at, 40)));
    const [idLength, nameLength, extra] = [read.u16be(12), read.u16be(14), read.u32be(36)];
    const names = at + 40 + extra;
    const end = names + idLength + nameLength;
    if (end > file.size) break;
    const more = new HeadReader(Buffer.from(file.read(at + 40, Math.min(extra, 16))));
    const text = Buffer.from(file.read(names, idLength + nameLength));
    // VM state above 4 GiB has its length in the first extra field.
    const vmState = extra >= 8 ? more.u64be(0) : read.u32be(32);
    list.push({
      id: text.subarray(0, idLength).toString('utf8'),
      name: text.subarray(idLength).toString('utf8'),
      vm_state_size: vmState,
    });
    at = Math.ceil(end / 8) * 8;
  }
  return list;
}

/** A GUID partition table, for sectors of 512 or of 4096 bytes. */
const gpt: Signature = {
  name: 'gpt-disk',
  title: 'a raw disk image with a GUID partition table',
  group: 'disk',
  match(head) {
    for (const sector of [512, 4096]) {
      if (head.subarray(sector, sector + 8).toString('latin1') !== 'EFI PART') continue;
      const read = new HeadReader(head);
      return { sector_size: sector, sectors: read.u64(sector + 32) + 1, entries: read.u32(sector + 80) };
    }
    return undefined;
  },
};

const PARTITION_TYPES: Readonly<Record<number, string>> = {
  5: 'extended',
  7: 'NTFS or exFAT',
  11: 'FAT32',
  12: 'FAT32',
  15: 'extended',
  130: 'Linux swap',
  131: 'Linux',
  142: 'Linux LVM',
  238: 'GPT',
  239: 'EFI',
  253: 'Linux RAID',
};

/** A boot sector with a partition table that makes sense; the mark alone is two bytes that may be there by chance. */
const mbr: Signature = {
  name: 'mbr-disk',
  title: 'a raw disk image with an MBR partition table',
  group: 'disk',
  match(head) {
    const read = new HeadReader(head);
    if (read.u16(510) !== 0xaa55) return undefined;
    const partitions: FieldValue[] = [];
    for (let at = 446; at < 510; at += 16) {
      const type = read.u8(at + 4);
      if ((read.u8(at) & 0x7f) !== 0) return undefined;
      if (type === 0) continue;
      const [first, sectors] = [read.u32(at + 8), read.u32(at + 12)];
      if (first === 0 || sectors === 0) return undefined;
      partitions.push({ type: PARTITION_TYPES[type] ?? `0x${type.toString(16)}`, first, sectors });
    }
    return partitions.length === 0 ? undefined : { partitions };
  },
};

/** Any other boot sector: of a FAT or NTFS file system, or of a boot loader. */
const bootSector: Signature = {
  name: 'boot-sector',
  title: 'a raw disk image that begins with a boot sector',
  group: 'disk',
  match: (head) =>
    head.length >= 512 && new HeadReader(head).u16(510) === 0xaa55 && (head[0] === 0xeb || head[0] === 0xe9)
      ? {}
      : undefined,
};

const ext: Signature = {
  name: 'ext-file-system',
  title: 'a raw disk image with an ext2, ext3 or ext4 file system',
  group: 'disk',
  match(head) {
    const read = new HeadReader(head);
    if (read.u16(1080) !== 0xef53 || read.u32(1048) > 6) return undefined;
    const size = read.u32(1028) * 2 ** (10 + read.u32(1048));
    return { block_size: 2 ** (10 + read.u32(1048)), size, label: read.text(1144, 16) };
  },
};

const vmdkText: Signature = {
  name: 'vmdk-descriptor',
  title: 'the description of a VMDK disk image',
  group: 'disk',
  match: (head) => (/^# Disk DescriptorFile\r?\n/.test(head.toString('latin1', 0, 32)) ? {} : undefined),
};

/** Formats that hold a disk as something other than its bytes: served as they are, a guest would destroy them. */
export const DISK_FORMATS: readonly Signature[] = [
  magicRow('disk', 'qcow2', 'a qcow2 disk image', 'QFI\xfb', 0, describeQcow2),
  magicRow('disk', 'qed', 'a QED disk image', 'QED\0', 0, (head) => ({
    virtual_size: new HeadReader(head).u64(48),
  })),
  magicRow('disk', 'vmdk', 'a VMDK disk image', 'KDMV', 0, (head) => ({
    version: new HeadReader(head).u32(4),
    virtual_size: new HeadReader(head).u64(12) * 512,
  })),
  magicRow('disk', 'vmdk-sparse', 'a VMDK disk image (ESX)', 'COWD'),
  magicRow('disk', 'vmdk-se', 'a VMDK disk image (SESparse)', '\xbe\xba\xfe\xca\0\0\0\0'),
  vmdkText,
  magicRow('disk', 'vdi', 'a VDI disk image', '\x7f\x10\xda\xbe', 64, (head) => ({
    virtual_size: new HeadReader(head).u64(368),
  })),
  magicRow('disk', 'vhdx', 'a VHDX disk image', 'vhdxfile', 0, (head) => ({
    creator: head.subarray(8, 520).toString('utf16le').split('\0')[0] ?? '',
  })),
  magicRow('disk', 'vhd', 'a VHD disk image', 'conectix', 0, (head) => ({
    virtual_size: new HeadReader(head).u64be(48),
  })),
  magicRow('disk', 'parallels', 'a Parallels disk image', 'WithoutFreeSpace'),
  magicRow('disk', 'parallels', 'a Parallels disk image', 'WithouFreSpacExt'),
  magicRow('disk', 'bochs', 'a Bochs disk image', 'Bochs Virtual HD Image'),
  magicRow('disk', 'cloop', 'a cloop disk image', '#!/bin/sh\n#V2.0 Format'),
];

/** Raw disks. Partition tables come before file systems: a boot sector may be a part of either. */
export const RAW_DISKS: readonly Signature[] = [
  gpt,
  magicRow('disk', 'luks', 'a raw disk image encrypted with LUKS', 'LUKS\xba\xbe', 0, (head) => ({
    version: head.length >= 8 ? head.readUInt16BE(6) : 0,
  })),
  magicRow('disk', 'xfs-file-system', 'a raw disk image with an XFS file system', 'XFSB'),
  magicRow('disk', 'ntfs-file-system', 'a raw disk image with an NTFS file system', 'NTFS    ', 3),
  magicRow('disk', 'exfat-file-system', 'a raw disk image with an exFAT file system', 'EXFAT   ', 3),
  magicRow('disk', 'bitlocker', 'a raw disk image encrypted with BitLocker', '-FVE-FS-', 3),
  magicRow('disk', 'fat-file-system', 'a raw disk image with a FAT file system', 'FAT12   ', 54),
  magicRow('disk', 'fat-file-system', 'a raw disk image with a FAT file system', 'FAT16   ', 54),
  magicRow('disk', 'fat-file-system', 'a raw disk image with a FAT file system', 'FAT32   ', 82),
  ext,
  magicRow('disk', 'btrfs-file-system', 'a raw disk image with a btrfs file system', '_BHRfS_M', 0x10040),
  magicRow('disk', 'f2fs-file-system', 'a raw disk image with an F2FS file system', '\x10\x20\xf5\xf2', 1024),
  magicRow(
    'disk',
    'erofs-file-system',
    'a raw disk image with an EROFS file system',
    '\xe2\xe1\xf5\xe0',
    1024,
  ),
  magicRow('disk', 'reiserfs-file-system', 'a raw disk image with a ReiserFS file system', 'ReIsEr', 0x10034),
  magicRow('disk', 'jfs-file-system', 'a raw disk image with a JFS file system', 'JFS1', 0x8000),
  magicRow(
    'disk',
    'bcachefs-file-system',
    'a raw disk image with a bcachefs file system',
    '\xc6\x85\x73\xf6\x4e\x1a\x45\xca',
    4120,
  ),
  magicRow('disk', 'squashfs', 'a squashfs image', 'hsqs'),
  magicRow('disk', 'cramfs', 'a cramfs image', '\x45\x3d\xcd\x28'),
  magicRow('disk', 'iso9660', 'an ISO 9660 image', 'CD001', 0x8001, (head) => ({
    volume: new HeadReader(head).text(0x8028, 32).trim(),
  })),
  magicRow('disk', 'lvm', 'a raw disk image with an LVM physical volume', 'LABELONE', 512),
  magicRow('disk', 'lvm', 'a raw disk image with an LVM physical volume', 'LABELONE', 0),
  magicRow('disk', 'md-raid', 'a member of a Linux software RAID', '\xfc\x4e\x2b\xa9', 4096),
  magicRow('disk', 'md-raid', 'a member of a Linux software RAID', '\xfc\x4e\x2b\xa9', 0),
  magicRow('disk', 'bluestore', 'a Ceph BlueStore device', 'bluestore block device'),
  magicRow('disk', 'swap', 'Linux swap space', 'SWAPSPACE2', 4086),
  magicRow('disk', 'swap', 'Linux swap space', 'SWAP-SPACE', 4086),
  mbr,
  bootSector,
];
