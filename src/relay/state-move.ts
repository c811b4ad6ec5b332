// SPDX-License-Identifier: Apache-2.0
/**
 * Moves the state of a device from one back end to another. The relay is its own manager for that: a client of the
 * migration protocols at one end of a socket pair, a manager's connection at the other.
 */

import {
  Client,
  type ImageEnd,
  MigrationClient,
  RegionMigrationClient,
  whyOtherImages,
} from '../client/index.js';
import { DevstateError } from '../errors.js';
import { socketPair } from '../transport/index.js';
import { Feature, FeatureFlag, MigrationFlag, MigrationState } from '../wire/index.js';
import type { BackEnd } from './back-end.js';
import { type Managed, ManagerConnection } from './manager-connection.js';

const { RESUMING, RUNNING, STOP_COPY } = MigrationState;

export interface MoveOptions {
  /** The images of both servers are kept the same by other means than being one file. */
  readonly imageUnchecked: boolean;
  readonly trap: boolean;
  readonly log: (level: 'info' | 'warn' | 'error', message: string) => void;
}

/** The migration of the device behind one back end. */
async function openMigration(
  managed: Managed,
  back: BackEnd,
  { trap, log }: Pick<MoveOptions, 'trap' | 'log'>,
): Promise<MigrationClient> {
  const [ours, theirs] = socketPair();
  new ManagerConnection(theirs, { managed, trap, noPreCopy: false, log, closed: () => {} });
  const client = await Client.connect(ours);
  try {
    const byCommands = new MigrationClient(client);
    const hasV2 = await byCommands.probeFeature(Feature.MIGRATION, FeatureFlag.GET);
    const device = hasV2 ? byCommands : await RegionMigrationClient.open(client, { map: !trap });
    if (device !== undefined && ((await device.flags()) & MigrationFlag.STOP_COPY) !== 0) return device;
  } catch (error) {
    client.close();
    throw error;
  }
  client.close();
  const message = `the device at ${back.path} cannot give or take its state; replace it without, if it keeps none`;
  throw new DevstateError('DEVSTATE_E_NOT_MIGRATABLE', message);
}

async function requireSameImages(from: ImageEnd, to: ImageEnd): Promise<void> {
  const why = await whyOtherImages(from, to);
  if (why === undefined) return;
  const message = `${why}; if the storage is kept the same by other means, say so with --image-unchecked`;
  throw new DevstateError('DEVSTATE_E_INCOMPATIBLE', message);
}

export class StateMove {
  readonly #source: MigrationClient;
  readonly #destination: MigrationClient;
  /** Bytes of state that have reached the destination. */
  bytes = 0;

  private constructor(source: MigrationClient, destination: MigrationClient) {
    this.#source = source;
    this.#destination = destination;
  }

  /**
   * Makes sure that both can do it, on the same image, and has the destination wait for it.
   * @throws DEVSTATE_E_NOT_MIGRATABLE, DEVSTATE_E_INCOMPATIBLE
   */
  static async prepare(
    from: { back: BackEnd; managed: Managed },
    to: { back: BackEnd; managed: Managed },
    options: MoveOptions,
  ): Promise<StateMove> {
    const source = await openMigration(from.managed, from.back, options);
    let destination: MigrationClient | undefined;
    try {
      destination = await openMigration(to.managed, to.back, options);
      if (!options.imageUnchecked)
        await requireSameImages(
          { path: from.back.path, device: source },
          { path: to.back.path, device: destination },
        );
      await destination.setState(RESUMING);
      return new StateMove(source, destination);
    } catch (error) {
      destination?.close();
      source.close();
      throw error;
    }
  }

  /** Stops the source and has the destination load its state, stopped still. */
  async move(): Promise<void> {
    const [source, destination] = [this.#source, this.#destination];
    await source.setState(STOP_COPY);
    let buffers = [new Uint8Array(source.maxChunk), new Uint8Array(source.maxChunk)];
    let written: Promise<void> = Promise.resolve();
    // The next chunk is read while the last one is written.
    for (;;) {
      const [buffer, other] = buffers as [Uint8Array<ArrayBuffer>, Uint8Array<ArrayBuffer>];
      buffers = [other, buffer];
      const size = await source.readData(buffer).catch(async (error: unknown) => {
        await written.catch(() => {});
        throw error;
      });
      await written;
      if (size === 0) break;
      written = this.#write(buffer.subarray(0, size));
      // Looked at with the next chunk.
      written.catch(() => {});
    }
    await destination.commitLoad();
  }

  async #write(chunk: Uint8Array): Promise<void> {
    const destination = this.#destination;
    const whole = destination.protocol === 'v1';
    const step = whole ? chunk.length : destination.maxChunk;
    for (let at = 0; at < chunk.length; at += step) {
      const part = chunk.subarray(at, at + step);
      await destination.writeData(part, { whole });
      this.bytes += part.length;
    }
  }

  async runDestination(): Promise<void> {
    await this.#destination.setState(RUNNING);
  }

  async runSource(): Promise<void> {
    await this.#source.setState(RUNNING);
  }

  close(): void {
    this.#source.close();
    this.#destination.close();
  }
}
