// SPDX-License-Identifier: Apache-2.0
/**
 * Numbers of the vfio-user protocol (0.9.2) and of the VFIO uAPI it carries, under their specifications' names.
 * A number has one home, and this is it.
 */

/** Message header: `message id u16, command u16, message size u32, flags u32, error u32`. */
export const HEADER_LENGTH = 16;

/** Protocol version that we speak: `major.minor` of the VERSION message. */
export const PROTOCOL_MAJOR = 0;
export const PROTOCOL_MINOR = 2;

/** vfio-user commands (specification, "Commands"). */
export const Command = {
  VERSION: 1,
  DMA_MAP: 2,
  DMA_UNMAP: 3,
  DEVICE_GET_INFO: 4,
  DEVICE_GET_REGION_INFO: 5,
  DEVICE_GET_REGION_IO_FDS: 6,
  DEVICE_GET_IRQ_INFO: 7,
  DEVICE_SET_IRQS: 8,
  REGION_READ: 9,
  REGION_WRITE: 10,
  DMA_READ: 11,
  DMA_WRITE: 12,
  DEVICE_RESET: 13,
  /** Protocol 0.9.1 (migration v1) only. */
  DIRTY_PAGES: 14,
  REGION_WRITE_MULTI: 15,
  DEVICE_FEATURE: 16,
  MIG_DATA_READ: 17,
  MIG_DATA_WRITE: 18,
} as const;
export type Command = (typeof Command)[keyof typeof Command];

const commandNames = new Map<number, string>(Object.entries(Command).map(([name, value]) => [value, name]));

/** The command's name in the specification, or `command N`. */
export function commandName(command: number): string {
  return commandNames.get(command) ?? `command ${command}`;
}

/** Header flags. Bits 0-3 are the type: 0 command, 1 reply. */
export const HeaderFlag = {
  TYPE_MASK: 0xf,
  TYPE_COMMAND: 0,
  TYPE_REPLY: 1,
  NO_REPLY: 0x10,
  ERROR: 0x20,
} as const;

/** DMA_MAP flags. MMAP and FILE_IO are libvfio-user's extension: how the passed fd is to be accessed. */
export const DmaMapFlag = { READ: 1, WRITE: 2, MMAP: 4, FILE_IO: 8 } as const;

/** DMA_UNMAP flags. GET_DIRTY_BITMAP belongs to migration v1. */
export const DmaUnmapFlag = { GET_DIRTY_BITMAP: 1, ALL: 2 } as const;

/** DEVICE_GET_INFO flags (`VFIO_DEVICE_FLAGS_*`). */
export const DeviceInfoFlag = { RESET: 1, PCI: 2 } as const;

/** DEVICE_GET_REGION_INFO flags (`VFIO_REGION_INFO_FLAG_*`). */
export const RegionInfoFlag = { READ: 1, WRITE: 2, MMAP: 4, CAPS: 8 } as const;

/** Region info capability ids (`VFIO_REGION_INFO_CAP_*`). */
export const RegionCapability = { SPARSE_MMAP: 1, TYPE: 2 } as const;

/** Region indexes of a PCI device (`VFIO_PCI_*_REGION_INDEX`). */
export const PciRegion = {
  BAR0: 0,
  BAR1: 1,
  BAR2: 2,
  BAR3: 3,
  BAR4: 4,
  BAR5: 5,
  ROM: 6,
  CONFIG: 7,
  VGA: 8,
  COUNT: 9,
} as const;

/** Interrupt indexes of a PCI device (`VFIO_PCI_*_IRQ_INDEX`). */
export const PciIrq = { INTX: 0, MSI: 1, MSIX: 2, ERR: 3, REQ: 4, COUNT: 5 } as const;

/** DEVICE_GET_IRQ_INFO flags (`VFIO_IRQ_INFO_*`). */
export const IrqInfoFlag = { EVENTFD: 1, MASKABLE: 2, AUTOMASKED: 4, NORESIZE: 8 } as const;

/** DEVICE_SET_IRQS flags (`VFIO_IRQ_SET_*`): exactly one DATA and exactly one ACTION. */
export const IrqSetFlag = {
  DATA_NONE: 1,
  DATA_BOOL: 2,
  DATA_EVENTFD: 4,
  DATA_MASK: 7,
  ACTION_MASK: 8,
  ACTION_UNMASK: 16,
  ACTION_TRIGGER: 32,
  ACTIONS_MASK: 56,
} as const;

/** DEVICE_GET_REGION_IO_FDS sub-region types. */
export const IoFdType = { IOEVENTFD: 0, IOREGIONFD: 1 } as const;

/** DEVICE_FEATURE flags: the low 16 bits are the feature's index. */
export const FeatureFlag = { INDEX_MASK: 0xffff, GET: 0x10000, SET: 0x20000, PROBE: 0x40000 } as const;

/** DEVICE_FEATURE indexes (`VFIO_DEVICE_FEATURE_*`) and, from 0xd500, this project's own (docs/protocol.md). */
export const Feature = {
  MIGRATION: 1,
  MIG_DEVICE_STATE: 2,
  DMA_LOGGING_START: 6,
  DMA_LOGGING_STOP: 7,
  DMA_LOGGING_REPORT: 8,
  MIG_DATA_SIZE: 9,
  /** GET: JSON that describes the device: model, parameters, formats (migration socket only). */
  DEVSTATE_DESCRIPTION: 0xd500,
  /** GET, SET: bytes that the manager leaves with the server, so that the next manager can pick up (migration socket only). */
  DEVSTATE_NOTE: 0xd501,
  /** GET: the DMA ranges the VMM has mapped (migration socket only). */
  DEVSTATE_DMA_MAPS: 0xd502,
  /** GET: text that explains the last error reply on this connection (migration socket only). */
  DEVSTATE_LAST_ERROR: 0xd503,
  /** SET: u32, 1 to have the device write guest memory by DMA_WRITE messages while the DMA log is on (migration socket only). */
  DEVSTATE_WRITE_BY_MESSAGE: 0xd504,
  /** GET: the formats that the device saves and loads. SET: the one to use next (migration socket only). */
  DEVSTATE_FORMATS: 0xd505,
  /** GET: names of the values that make up the state, or one value. SET: one value (migration socket only). */
  DEVSTATE_VALUES: 0xd506,
  /** GET: hands the server over to its successor, as the request's JSON says, and reports (migration socket only). */
  DEVSTATE_HANDOFF: 0xd507,
  /** GET: how far the VMM's succession is, as JSON. SET: its next step, as JSON (migration socket only). */
  DEVSTATE_NEXT_VMM: 0xd508,
  /** GET: which reads of configuration space its VMM has sent (migration socket only). */
  DEVSTATE_CONFIG_READS: 0xd509,
  /** GET: the DMA ranges that are files, with the files (migration socket only). */
  DEVSTATE_DMA_FILES: 0xd50a,
  /** GET: the image files that the device works on, as JSON. SET: a byte that their locks leave out. */
  DEVSTATE_IMAGES: 0xd50b,
} as const;

/** `VFIO_MIGRATION_*`: what GET of Feature.MIGRATION reports. */
export const MigrationFlag = { STOP_COPY: 1, P2P: 2, PRE_COPY: 4 } as const;

/** `enum vfio_device_mig_state` (migration v2). Never print the number: v1's 1 is RUNNING. */
export const MigrationState = {
  ERROR: 0,
  STOP: 1,
  RUNNING: 2,
  STOP_COPY: 3,
  RESUMING: 4,
  RUNNING_P2P: 5,
  PRE_COPY: 6,
  PRE_COPY_P2P: 7,
} as const;
export type MigrationState = (typeof MigrationState)[keyof typeof MigrationState];

const stateNames = Object.keys(MigrationState) as (keyof typeof MigrationState)[];

/** The state's name in the uAPI. */
export function migrationStateName(state: number): string {
  return stateNames.find((name) => MigrationState[name] === state) ?? `state ${state}`;
}

/** Defaults of the VERSION capabilities when a peer leaves them out (specification, "Version Data Format"). */
export const DEFAULT_MAX_MSG_FDS = 1;
export const DEFAULT_MAX_DATA_XFER_SIZE = 1048576;
export const DEFAULT_MAX_DMA_MAPS = 65535;
export const DEFAULT_PAGE_SIZES = 4096;
