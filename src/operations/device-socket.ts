// SPDX-License-Identifier: Apache-2.0
/** Connecting to a device server's migration socket. */

import { Client, MigrationClient, RegionMigrationClient } from '../client/index.js';
import { DevstateError } from '../errors.js';
import type { MigrationProtocol } from '../migration/index.js';
import { Feature, FeatureFlag, MigrationFlag } from '../wire/index.js';

export interface DeviceSocket {
  readonly path: string;
  readonly device: MigrationClient;
  /** `MigrationFlag` bits of the device. */
  readonly flags: number;
}

/** By which protocol a device is to be migrated: `auto` for v2 if it has both. */
export type ProtocolChoice = MigrationProtocol | 'auto';

export interface DeviceSocketOptions {
  /** Default: `auto`. */
  readonly protocol?: ProtocolChoice;
  /** For v1: do not map the data section, even if the server lets us. Some offer it and do not notice what is done there. */
  readonly trap?: boolean;
}

/**
 * Connects and makes sure that the device behind can migrate.
 * @throws DEVSTATE_E_CONNECT, DEVSTATE_E_NOT_MIGRATABLE
 */
export async function openDeviceSocket(
  path: string,
  options: DeviceSocketOptions = {},
): Promise<DeviceSocket> {
  const client = await connect(path);
  try {
    const device = await chooseProtocol(client, options);
    const flags = await device.flags();
    if ((flags & MigrationFlag.STOP_COPY) === 0) throw new Error('it does not offer STOP_COPY');
    return { path, device, flags };
  } catch (cause) {
    client.close();
    if (cause instanceof DevstateError && cause.code === 'DEVSTATE_E_CONNECTION_CLOSED') {
      throw new DevstateError(cause.code, `${path}: ${cause.message}`, { cause });
    }
    const why = cause instanceof Error ? cause.message : String(cause);
    const message = `the device at ${path} cannot migrate: ${why}; is this its migration socket?`;
    throw new DevstateError('DEVSTATE_E_NOT_MIGRATABLE', message, { cause });
  }
}

/** @throws what the server refuses v2 with, when it has neither */
async function chooseProtocol(
  client: Client,
  { protocol = 'auto', trap = false }: DeviceSocketOptions,
): Promise<MigrationClient> {
  const byCommands = new MigrationClient(client);
  if (protocol !== 'v1' && (await byCommands.probeFeature(Feature.MIGRATION, FeatureFlag.GET)))
    return byCommands;
  const byRegion = await RegionMigrationClient.open(client, { map: !trap });
  if (byRegion === undefined && protocol !== 'v1') return byCommands;
  if (byRegion === undefined) throw new Error('it has no migration region (v1)');
  if (protocol !== 'v2') return byRegion;
  byRegion.close();
  throw new Error('it has migration v1 only, and v2 was asked for');
}

/** An error says which socket it is about. */
async function connect(path: string): Promise<Client> {
  try {
    return await Client.connect(path);
  } catch (cause) {
    if (!(cause instanceof DevstateError) || cause.message.includes(path)) throw cause;
    const options = cause.errno === undefined ? { cause } : { cause, errno: cause.errno };
    throw new DevstateError(cause.code, `${path}: ${cause.message}; is this a migration socket?`, options);
  }
}
