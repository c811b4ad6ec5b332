// SPDX-License-Identifier: Apache-2.0
/** The pure parts of the PCI view, and its capture and replay on a model machine; qemu.test.ts does it on QEMU. */
import t from 'tap';
import type { ConfigAccess, ConfigEcam } from '../../src/qemu/config-access.js';
import {
  configAddress,
  configRead,
  configValues,
  configWrite,
  ecamAddress,
} from '../../src/qemu/pci-commands.js';
import { memoryBarBase, walkCapabilities } from '../../src/qemu/pci-config.js';
import {
  capturePciView,
  replayPciView,
  requireMessageSignalled,
  restoreCommand,
  silenceIntx,
} from '../../src/qemu/pci-replay.js';
import { decodeConfig, msixTableAddress, PciView } from '../../src/qemu/pci-view.js';
import {
  decodeQtestAnswer,
  encodeQtestCommand,
  type QtestAccess,
  type QtestCommand,
} from '../../src/qemu/qtest.js';

const PORTS: ConfigAccess = { kind: 'ports', address: 0xcf8, data: 0xcfc };
const ECAM: ConfigEcam = { kind: 'ecam', base: 0x4010000000, size: 0x10000000 };
const HERE = { bus: 1, slot: 5, function: 2, config: PORTS };
/** The same device of a machine that has an ECAM and no ports. */
const THERE = { ...HERE, config: ECAM };
const WAYS = [
  { way: 'ports', at: HERE },
  { way: 'ECAM', at: THERE },
];
/** Where THERE's 4 KiB are. */
const FUNCTION = 0x401012a000;
const BROKEN = { code: 'DEVSTATE_E_PCI_VIEW' };
const TABLE = 0xfebf2000;
const MSI = 0x50;
const MSIX = 0x40;

/** A type 0 configuration space with an MSI-X capability (2 vectors, table in BAR0 at 0x2000) at 0x40. */
function config(change: (registers: DataView) => void = () => {}): Uint8Array {
  const bytes = new Uint8Array(256);
  const registers = new DataView(bytes.buffer);
  registers.setUint32(0x00, 0x0dc9494f, true);
  registers.setUint16(0x04, 0x0507, true);
  registers.setUint16(0x06, 0x0010, true);
  registers.setUint32(0x10, 0xfebf0004, true);
  registers.setUint32(0x18, 0x0000c001, true);
  registers.setUint32(0x30, 0xfea00001, true);
  registers.setUint8(0x34, MSIX);
  registers.setUint8(0x3c, 11);
  registers.setUint32(MSIX, 0x80010011, true);
  registers.setUint32(MSIX + 4, 0x2000, true);
  change(registers);
  return bytes;
}

/** Adds an MSI capability at 0x50 behind the MSI-X one. */
function withMsi(control: number) {
  return (registers: DataView) => {
    registers.setUint8(MSIX + 1, MSI);
    registers.setUint16(MSI, 0x0005, true);
    registers.setUint16(MSI + 2, control, true);
    registers.setUint32(MSI + 4, 0xfee00000, true);
    registers.setUint32(MSI + 8, 0x11, true);
    registers.setUint32(MSI + 12, 0x22, true);
    registers.setUint32(MSI + 16, 0x33, true);
  };
}

/** A machine with one device at {@link HERE}, whose MSI-X table decodes only where and while BAR0 is mapped. */
class Machine implements QtestAccess {
  latch = 0x80001234;
  readonly log: QtestCommand[] = [];
  readonly table = new DataView(new ArrayBuffer(32));

  constructor(
    readonly config: Uint8Array,
    /** Bits of BAR0's low dword that no write changes. */
    readonly stuck = { bar0: 0xfff },
  ) {}

  async run(commands: readonly QtestCommand[]): Promise<number[]> {
    return commands.map((command) => {
      this.log.push(command);
      return this.#access(command);
    });
  }

  #access(command: QtestCommand): number {
    const value = 'value' in command ? command.value : undefined;
    if (command.address === 0xcf8) {
      if (value === undefined) return this.latch;
      this.latch = value;
      return 0;
    }
    const width = { b: 1, w: 2, l: 4 }[command.operation.slice(-1)] ?? 0;
    if (command.address >= 0xcfc && command.address < 0xd00) {
      const offset = (this.latch & 0xfc) + command.address - 0xcfc;
      if (this.latch >>> 8 !== configAddress(HERE, 0) >>> 8) return 0xffffffff;
      return this.#register(offset, width, value);
    }
    if (command.address >= ECAM.base && command.address < ECAM.base + ECAM.size) {
      const offset = command.address - FUNCTION;
      if (offset < 0 || offset >= 256) return 0xffffffff;
      return this.#register(offset, width, value);
    }
    const registers = new DataView(this.config.buffer);
    const mapped = (registers.getUint16(4, true) & 2) !== 0;
    const base = (registers.getUint32(0x10, true) & ~0xf) >>> 0;
    const offset = command.address - base - 0x2000;
    if (!mapped || offset < 0 || offset >= 32) return value === undefined ? 0xffffffff : 0;
    if (value === undefined) return this.table.getUint32(offset, true);
    this.table.setUint32(offset, value, true);
    return 0;
  }

  #register(offset: number, width: number, value: number | undefined): number {
    const bytes = this.config.subarray(offset, offset + width);
    if (value === undefined) return bytes.reduce((sum, byte, index) => sum + byte * 2 ** (8 * index), 0);
    for (let index = 0; index < width; index++) {
      const keep = offset === 0x10 ? (this.stuck.bar0 >>> (8 * index)) & 0xff : 0;
      bytes[index] = ((bytes[index] ?? 0) & keep) | ((value >>> (8 * index)) & 0xff & ~keep);
    }
    return 0;
  }
}

function machineWithTable(change?: (registers: DataView) => void): Machine {
  const machine = new Machine(config(change));
  for (let word = 0; word < 8; word++) machine.table.setUint32(4 * word, 0xfee01000 + word, true);
  return machine;
}

const ENTRIES = [
  { addressLow: 0xfee01000, addressHigh: 0xfee01001, data: 0xfee01002, vectorControl: 0xfee01003 },
  { addressLow: 0xfee01004, addressHigh: 0xfee01005, data: 0xfee01006, vectorControl: 0xfee01007 },
];

t.test('qtest lines', async (t) => {
  t.equal(encodeQtestCommand({ operation: 'readl', address: 0xfebf0000 }), 'readl 0xfebf0000\n');
  t.equal(encodeQtestCommand({ operation: 'outw', address: 0xcfc, value: 0x407 }), 'outw 0xcfc 0x407\n');
  const answers: [string, number | undefined][] = [
    ['OK', 0],
    ['OK 0x0000', 0],
    ['OK 0x00000000febf0004', 0xfebf0004],
    ['FAIL Unknown command', undefined],
    ['OK nonsense', undefined],
    ['OK 0x12345678123456781', undefined],
    ['', undefined],
  ];
  for (const [line, value] of answers) t.equal(decodeQtestAnswer(line), value, line);
});

t.test('configuration accesses name bus, slot, function and dword', async (t) => {
  t.equal(configAddress(HERE, 0x3d), 0x80012a3c);
  t.equal(configAddress({ bus: 255, slot: 31, function: 7 }, 0xff), 0x80fffffc);
  t.same(configRead(HERE, 0x3d, 'b'), [
    { operation: 'outl', address: 0xcf8, value: 0x80012a3c },
    { operation: 'inb', address: 0xcfd },
  ]);
  t.same(configWrite(HERE, 0x42, 'w', 0x8001), [
    { operation: 'outl', address: 0xcf8, value: 0x80012a40 },
    { operation: 'outw', address: 0xcfe, value: 0x8001 },
  ]);
  t.same(configRead(THERE, 0x3d, 'b'), [{ operation: 'readb', address: FUNCTION + 0x3d }]);
  t.same(configWrite(THERE, 0x42, 'w', 0x8001), [
    { operation: 'writew', address: FUNCTION + 0x42, value: 0x8001 },
  ]);
  const last = { bus: 255, slot: 31, function: 7 };
  t.equal(ecamAddress(ECAM, last, 0xfff), ECAM.base + ECAM.size - 1);
  t.throws(() => ecamAddress({ ...ECAM, size: 0x1000000 }, { ...last, bus: 16 }, 0), {
    code: 'DEVSTATE_E_PCI_DEVICE',
    message: /bus 16 is beyond the machine's ECAM, which covers 16 buses/,
  });
  for (const { way, at } of WAYS) {
    const commands = [...configRead(at, 0, 'l'), ...configRead(at, 4, 'w')];
    const values = commands.map((command, index) => ('value' in command ? 0 : index + 1));
    t.equal(configValues(commands, values).length, 2, `${way}: a value for each read`);
  }
});

t.test('capability lists', async (t) => {
  t.same(walkCapabilities(config()), [{ id: 0x11, offset: MSIX }]);
  t.same(walkCapabilities(config(withMsi(0))), [
    { id: 0x11, offset: MSIX },
    { id: 0x05, offset: MSI },
  ]);
  t.same(walkCapabilities(config((registers) => registers.setUint16(6, 0))), [], 'status says there is none');
  t.same(walkCapabilities(config((registers) => registers.setUint8(0x34, 0))), [], 'empty list');
  t.same(
    walkCapabilities(config((registers) => registers.setUint8(0x34, MSIX | 3))).length,
    1,
    'low bits ignored',
  );
  const list: [string, (registers: DataView) => void][] = [
    ['a circle', (registers) => registers.setUint8(MSIX + 1, MSIX)],
    ['into the header', (registers) => registers.setUint8(MSIX + 1, 0x3c)],
    ['a bridge', (registers) => registers.setUint8(0x0e, 0x81)],
    ['nothing answers', (registers) => registers.setUint32(0, 0xffffffff)],
  ];
  for (const [name, change] of list) t.throws(() => walkCapabilities(config(change)), BROKEN, name);
  t.throws(() => walkCapabilities(new Uint8Array(64)), BROKEN, 'too short');
});

t.test('bases of BARs', async (t) => {
  const cases: [number[], number, number | undefined][] = [
    [[0xfebf0000], 0, 0xfebf0000],
    [[0xfebf0004, 0x12], 0, 0x12_febf0000],
    [[0xfebf000c, 0x12], 0, 0x12_febf0000],
    [[0xfebf0004], 0, 0xfebf0000],
    [[0, 0xc001], 1, undefined],
    [[0x4, 0], 0, undefined],
    [[0xffffc004, 0xffffffff], 0, undefined],
    [[], 7, undefined],
  ];
  for (const [bars, index, base] of cases) t.equal(memoryBarBase(bars, index), base, JSON.stringify(bars));
});

t.test('what a configuration space says', async (t) => {
  const view = decodeConfig(config());
  t.same(view, {
    id: 0x0dc9494f,
    command: 0x0507,
    interruptLine: 11,
    bars: [0xfebf0004, 0, 0xc001, 0, 0, 0],
    romBar: 0xfea00001,
    msix: { offset: MSIX, control: 0x8001, table: 0x2000, entries: [] },
  });
  t.same(PciView.parse(JSON.parse(JSON.stringify(view))), view, 'survives a journal');
  t.equal(msixTableAddress(view), TABLE);
  t.equal(msixTableAddress({ ...view, bars: [0, 0, 0, 0, 0, 0] }), undefined);
  const { msix: _, ...plain } = view;
  t.equal(msixTableAddress(plain), undefined);
  const msi = (control: number) => decodeConfig(config(withMsi(control))).msi;
  const common = { offset: MSI, addressLow: 0xfee00000 };
  t.same(msi(0x001), { ...common, control: 0x001, addressHigh: 0, data: 0x11, mask: 0 });
  t.same(msi(0x081), { ...common, control: 0x081, addressHigh: 0x11, data: 0x22, mask: 0 });
  t.same(msi(0x101), { ...common, control: 0x101, addressHigh: 0, data: 0x11, mask: 0x22 });
  t.same(msi(0x181), { ...common, control: 0x181, addressHigh: 0x11, data: 0x22, mask: 0x33 });
});

for (const { way, at } of WAYS)
  t.test(`capture reads the table and leaves no trace, by ${way}`, async (t) => {
    const cases: [string, (registers: DataView) => void, typeof ENTRIES][] = [
      ['in use', () => {}, ENTRIES],
      ['MSI-X off, decoding on', (registers) => registers.setUint16(MSIX + 2, 1, true), ENTRIES],
      ['MSI-X on, decoding off', (registers) => registers.setUint16(4, 0x0500, true), ENTRIES],
      [
        'both off',
        (registers) => {
          registers.setUint16(4, 0x0500, true);
          registers.setUint16(MSIX + 2, 1, true);
        },
        [],
      ],
      ['BAR not set', (registers) => registers.setUint32(0x10, 4, true), []],
    ];
    for (const [name, change, entries] of cases) {
      const machine = machineWithTable(change);
      const before = machine.config.slice();
      const view = await capturePciView(machine, at);
      t.same(view.msix?.entries, entries, name);
      t.same(machine.config, before, `${name}: configuration unchanged`);
      t.equal(machine.latch, 0x80001234, `${name}: latch restored`);
    }
    const plain = await capturePciView(new Machine(config((registers) => registers.setUint16(6, 0))), at);
    t.equal(plain.msix, undefined);
    await t.rejects(capturePciView(machineWithTable(), { ...at, slot: 6 }), BROKEN, 'no device there');
  });

for (const { way, at } of WAYS)
  t.test(`replay makes another device the same, by ${way}`, async (t) => {
    const cases: [string, (registers: DataView) => void][] = [
      ['MSI-X', () => {}],
      ['MSI-X on, decoding off', (registers) => registers.setUint16(4, 0x0500, true)],
      ['MSI 32', withMsi(0x001)],
      ['MSI 64 maskable', withMsi(0x181)],
      ['MSI 32 maskable', withMsi(0x101)],
      ['none', (registers) => registers.setUint16(6, 0)],
    ];
    for (const [name, change] of cases) {
      const source = machineWithTable(change);
      const view = await capturePciView(source, at);
      const fresh = new Machine(
        config((registers) => {
          change(registers);
          registers.setUint16(4, 0, true);
          registers.setUint16(MSIX + 2, 1, true);
          for (let offset = 0x10; offset < 0x34; offset += 4) {
            registers.setUint32(offset, registers.getUint32(offset, true) & 0xf, true);
          }
          registers.setUint8(0x3c, 0);
          if (name.startsWith('MSI ')) {
            registers.setUint16(MSI + 2, registers.getUint16(MSI + 2, true) & ~1, true);
            registers.setUint32(MSI + 4, 0, true);
          }
        }),
      );
      await replayPciView(fresh, at, view);
      const writes = fresh.log.filter((command) => 'value' in command && command.address !== 0xcf8);
      t.equal(fresh.latch, 0x80001234, `${name}: latch restored`);
      if (way === 'ECAM')
        t.notOk(
          fresh.log.some(({ operation }) => /^(in|out)/.test(operation)),
          `${name}: no port`,
        );
      t.same(await capturePciView(fresh, at), view, name);
      if (view.msix !== undefined) {
        t.match(writes.filter(({ operation }) => operation.endsWith('w')).at(-1), {
          value: view.msix.control,
        });
        const isTable = ({ address }: QtestCommand): boolean => address >= TABLE && address < TABLE + 32;
        const table = writes.findIndex(isTable);
        t.ok(table > 0 && table < writes.length - 1, `${name}: table before its control`);
      }
    }
  });

t.test('replay refuses what does not fit, naming it', async (t) => {
  const view = await capturePciView(machineWithTable(withMsi(0x81)), HERE);
  const cases: [string, (registers: DataView) => void, RegExp][] = [
    [
      'another device',
      (registers) => registers.setUint32(0, 0x0010_8086, true),
      /vendor and device id is 0x108086/,
    ],
    ['no MSI-X', (registers) => registers.setUint8(MSIX, 9), /MSI-X capability is 0x9, not 0x11/],
    ['more vectors', (registers) => registers.setUint16(MSIX + 2, 3, true), /MSI-X table size/],
    ['table elsewhere', (registers) => registers.setUint32(MSIX + 4, 0x3000, true), /MSI-X table place/],
    ['no MSI', (registers) => registers.setUint8(MSI, 9), /MSI capability/],
    ['other MSI', (registers) => registers.setUint16(MSI + 2, 1, true), /MSI control/],
  ];
  for (const [name, change, message] of cases) {
    const other = machineWithTable((registers) => {
      withMsi(0x81)(registers);
      change(registers);
    });
    const before = other.config.slice();
    await t.rejects(replayPciView(other, HERE, view), { ...BROKEN, message }, name);
    t.same(other.config, before, `${name}: nothing written`);
  }
  const small = new Machine(config(withMsi(0x81)), { bar0: 0xffffffff });
  new DataView(small.config.buffer).setUint32(0x10, 0x4, true);
  await t.rejects(replayPciView(small, HERE, view), {
    ...BROKEN,
    message: /not keep.*BAR0 is 0x4, not 0xfebf0004/,
  });
});

for (const { way, at } of WAYS)
  t.test(`INTx is silenced and restored by COMMAND, by ${way}`, async (t) => {
    const machine = machineWithTable((registers) => registers.setUint16(4, 0x0107, true));
    const view = await capturePciView(machine, at);
    await silenceIntx(machine, at, view);
    t.equal((await capturePciView(machine, at)).command, 0x0507);
    await restoreCommand(machine, at, view);
    t.equal((await capturePciView(machine, at)).command, 0x0107);
    t.equal(machine.latch, 0x80001234);
  });

t.test('a device that interrupts by INTx is not for CPR', (t) => {
  const pin = { ...HERE, vendorId: 0x494f, deviceId: 0x0dc9, interruptPin: 1 };
  const msixOff = (registers: DataView): void => registers.setUint16(MSIX + 2, 0x0001, true);
  const msiOn = (registers: DataView): void => {
    msixOff(registers);
    withMsi(0x0181)(registers);
  };
  const none = (registers: DataView): void => registers.setUint8(0x34, 0);
  for (const change of [msixOff, none]) {
    const view = decodeConfig(config(change));
    t.throws(() => requireMessageSignalled(pin, view), { ...BROKEN, message: /interrupts by INTx/ });
    requireMessageSignalled({ ...pin, interruptPin: 0 }, view);
  }
  requireMessageSignalled(pin, decodeConfig(config(() => {})));
  requireMessageSignalled(pin, decodeConfig(config(msiOn)));
  t.end();
});
