// SPDX-License-Identifier: Apache-2.0
/**
 * The QEMU that is started to take a VM over by cpr-transfer, played by the test: a real process tells its command line
 * and lives as long as its stand-in.
 *
 *     upgradeQemu ── starts ──▶ process ── its arguments ──▶ NewQemu: listens at the cpr channel
 *     old QEMU ── migrate ──▶ cpr channel: makes its devices, listens at the main channel, offers QMP
 */
import { once } from 'node:events';
import { createServer, type Server, type Socket } from 'node:net';
import { fileURLToPath } from 'node:url';
import type { GuestRam } from '../../src/guest-driver/index.js';
import type { FunctionPlace } from './pci-function.js';
import { channelIn, devicesIn, qemuArguments, qmpIn, valuesOf } from './qemu-arguments.js';
import type { Hosts } from './qemu-hosts.js';
import { QemuStandIn } from './qemu-stand-in.js';

const PROGRAM = fileURLToPath(new URL('./new-qemu-process.js', import.meta.url));

export interface NewQemuOptions {
  readonly hosts: Hosts;
  /** The memory that both have. */
  readonly ram: GuestRam;
  /** Called before it is asked anything. */
  readonly begun: (qemu: QemuStandIn) => void;
}

export class NewQemu {
  /** Arguments of the process, once it has come up. */
  args: readonly string[] | undefined;
  /** It, once its devices were made. */
  qemu: QemuStandIn | undefined;
  /** Its process has ended. */
  hasEnded = false;
  /** Called when its process has come up. */
  onStart: () => void = () => {};
  readonly #path: string;
  readonly #options: NewQemuOptions;
  readonly #server: Server;
  #process: Socket | undefined;
  #cpr: Server | undefined;

  /** @param path of a socket where the process is to say what it is */
  private constructor(path: string, options: NewQemuOptions) {
    this.#path = path;
    this.#options = options;
    this.#server = createServer((socket) => this.#meet(socket));
  }

  static async listen(path: string, options: NewQemuOptions): Promise<NewQemu> {
    const qemu = new NewQemu(path, options);
    await new Promise<void>((resolve) => qemu.#server.listen(path, resolve));
    return qemu;
  }

  /** The command line of one with a vfio-user device, whose QMP is at `qmp`. */
  command(qmp: string, device: FunctionPlace): string[] {
    return [process.execPath, PROGRAM, this.#path, ...qemuArguments(qmp, device)];
  }

  get isAlive(): boolean {
    return this.args !== undefined && !this.hasEnded;
  }

  #meet(socket: Socket): void {
    if (this.#process !== undefined) throw new Error('a second new QEMU was started');
    this.#process = socket;
    let line = '';
    socket.on('data', (bytes) => {
      line += bytes.toString();
      if (line.endsWith('\n')) this.#begin(JSON.parse(line));
    });
    // It was killed.
    socket.on('error', () => {});
    socket.on('close', () => this.#end());
  }

  /** The values of an option. */
  values(option: string): string[] {
    return valuesOf(this.args ?? [], option);
  }

  #begin(args: readonly string[]): void {
    this.args = args;
    const [cpr, main] = [channelIn(args, 'cpr'), channelIn(args, 'main')];
    this.#options.hosts.waiting.set(cpr, () => this.#makeDevices(main));
    this.#cpr = createServer().listen(cpr);
    this.onStart();
  }

  async #makeDevices(main: string): Promise<void> {
    this.#cpr?.close();
    if (this.hasEnded) return;
    const { hosts, ram, begun } = this.#options;
    const args = this.args ?? [];
    const [qmp, devices] = [qmpIn(args), devicesIn(args)];
    try {
      const incoming = { at: main };
      const qemu = await QemuStandIn.start(qmp, { name: 'the new QEMU', hosts, ram, devices, incoming });
      this.qemu = qemu;
      qemu.onExit = () => this.#process?.destroy();
      begun(qemu);
    } catch {
      // A device that cannot be made ends it.
      this.#process?.destroy();
    }
    if (this.hasEnded) this.qemu?.exit();
  }

  #end(): void {
    this.hasEnded = true;
    this.#cpr?.close();
    this.qemu?.exit();
  }

  /** Its process is killed, by hand. */
  async kill(): Promise<void> {
    const process = this.#process;
    if (process === undefined || process.closed) return;
    const closed = once(process, 'close');
    process.destroy();
    await closed;
  }

  async close(): Promise<void> {
    await this.kill();
    await this.qemu?.close();
    await new Promise((resolve) => this.#server.close(resolve));
  }
}
