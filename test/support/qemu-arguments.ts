// SPDX-License-Identifier: Apache-2.0
/** As much of a QEMU's command line as its stand-in needs: devices, where QMP is, and where a VM comes from. */
import type { FunctionPlace } from './pci-function.js';

interface DeviceArgument {
  readonly id: string;
  readonly addr: number;
  readonly socket: { readonly path: string };
}

interface ChannelArgument {
  readonly 'channel-type': string;
  readonly addr: { readonly path: string };
}

/** The arguments that describe a vfio-user device and QMP at `qmp`. */
export function qemuArguments(qmp: string, { id, slot, socket }: FunctionPlace): string[] {
  const device = { driver: 'vfio-user-pci', id, addr: slot, socket: { type: 'unix', path: socket } };
  return ['-qmp', `unix:${qmp},server=on,wait=off`, '-device', JSON.stringify(device)];
}

/** The values of an option. */
export function valuesOf(args: readonly string[], option: string): string[] {
  return args.filter((_, index) => args[index - 1] === option);
}

export function devicesIn(args: readonly string[]): FunctionPlace[] {
  return valuesOf(args, '-device').map((one) => {
    const { id, addr, socket } = JSON.parse(one) as DeviceArgument;
    return { id, slot: addr, socket: socket.path };
  });
}

/** Path of the QMP socket. */
export function qmpIn(args: readonly string[]): string {
  return /^unix:([^,]*),/.exec(valuesOf(args, '-qmp')[0] ?? '')?.[1] ?? '';
}

/** Path of a channel of cpr-transfer. */
export function channelIn(args: readonly string[], type: 'main' | 'cpr'): string {
  const channels = valuesOf(args, '-incoming').map((one) => JSON.parse(one) as ChannelArgument);
  return channels.find((one) => one['channel-type'] === type)?.addr.path ?? '';
}

/** Path of the file that a VM comes from. */
export function fileIn(args: readonly string[]): string {
  return /^file:(.*)$/.exec(valuesOf(args, '-incoming')[0] ?? '')?.[1] ?? '';
}
