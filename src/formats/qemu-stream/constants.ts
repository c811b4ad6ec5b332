// SPDX-License-Identifier: Apache-2.0
/**
 * Numbers of QEMU's migration stream, with the names that QEMU's source gives them. All integers of the stream are
 * big-endian.
 */

/** `QEVM`. */
export const QEMU_VM_FILE_MAGIC = 0x5145564d;
/** The only version in use since 2008. */
export const QEMU_VM_FILE_VERSION = 3;
export const FILE_HEADER_LENGTH = 8;

/** First byte of every element of the stream (QEMU: `QEMU_VM_…`). */
export const ElementType = {
  EOF: 0x00,
  SECTION_START: 0x01,
  SECTION_PART: 0x02,
  SECTION_END: 0x03,
  SECTION_FULL: 0x04,
  SUBSECTION: 0x05,
  VMDESCRIPTION: 0x06,
  CONFIGURATION: 0x07,
  COMMAND: 0x08,
  SECTION_FOOTER: 0x7e,
} as const;

/** Element type of a section → the word for it. */
export const SECTION_KINDS: ReadonlyMap<number, string> = new Map([
  [ElementType.SECTION_START, 'START'],
  [ElementType.SECTION_PART, 'PART'],
  [ElementType.SECTION_END, 'END'],
  [ElementType.SECTION_FULL, 'FULL'],
]);

/** Footer: its type and the section's id. */
export const FOOTER_LENGTH = 5;

/** Commands of the source to the destination, by number (QEMU: `MIG_CMD_…`). */
export const COMMAND_NAMES: readonly string[] = [
  'INVALID',
  'OPEN_RETURN_PATH',
  'PING',
  'POSTCOPY_ADVISE',
  'POSTCOPY_LISTEN',
  'POSTCOPY_RUN',
  'POSTCOPY_RAM_DISCARD',
  'PACKAGED',
  'ENABLE_COLO',
  'POSTCOPY_RESUME',
  'RECV_BITMAP',
  'SWITCHOVER_START',
];
/** Its payload is the length of a stream, without header, that follows the command. */
export const COMMAND_PACKAGED = COMMAND_NAMES.indexOf('PACKAGED');
export const COMMAND_POSTCOPY_ADVISE = COMMAND_NAMES.indexOf('POSTCOPY_ADVISE');

/** Flags in the low bits of a page's address (QEMU: `RAM_SAVE_FLAG_…`). */
export const RamFlag = {
  ZERO: 0x02,
  MEM_SIZE: 0x04,
  PAGE: 0x08,
  EOS: 0x10,
  CONTINUE: 0x20,
  XBZRLE: 0x40,
  HOOK: 0x80,
  /** Gone since QEMU 9.1. */
  COMPRESS_PAGE: 0x100,
  MULTIFD_FLUSH: 0x200,
} as const;

/** The one encoding of XBZRLE pages (QEMU: `ENCODING_FLAG_XBZRLE`). */
export const ENCODING_FLAG_XBZRLE = 1;

/** Upper and lower half of the tags in a vfio device's sections (QEMU: `VFIO_MIG_FLAG_…`). */
export const VFIO_TAG_HIGH = 0xffffffff;
export const VfioTag = {
  END_OF_STATE: 0xef100001,
  DEV_CONFIG_STATE: 0xef100002,
  DEV_SETUP_STATE: 0xef100003,
  DEV_DATA_STATE: 0xef100004,
  DEV_INIT_DATA_SENT: 0xef100005,
  DEV_CONFIG_LOAD_READY: 0xef100006,
} as const;

/** Flags of a chunk in a `dirty-bitmap` section (QEMU: `DIRTY_BITMAP_MIG_FLAG_…`). */
export const DirtyBitmapFlag = {
  EOS: 0x01,
  ZEROES: 0x02,
  BITMAP_NAME: 0x04,
  DEVICE_NAME: 0x08,
  START: 0x10,
  COMPLETE: 0x20,
  BITS: 0x40,
  EXTRA_FLAGS: 0x80,
} as const;
