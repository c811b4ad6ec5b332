// SPDX-License-Identifier: Apache-2.0
/** Moves the state of a device from one back end to another. The relay is its own manager for that. */

import {
  type ImageEnd,
  MigrationClient,
  RegionMigrationClient,
  Requester,
  whyOtherImages,
} from '../client/index.js';
import { DevstateError } from '../errors.js';
import { Feature, FeatureFlag, MigrationFlag, MigrationState } from '../wire/index.js';
import type { BackEnd } from './back-end.js';

const { RESUMING, RUNNING, STOP_COPY } = MigrationState;

export interface MoveOptions {
  /** The images of both servers are kept the same by other means than being one file. */
  readonly imageUnchecked: boolean;
  readonly trap: boolean;
  /** Called before the source is asked to stop. */
  readonly stopping: () => void;
}

/** A back end as a migration uses it: it stays open when the migration is closed. */
class LentBackEnd extends Requester {
  readonly #back: BackEnd;
  readonly explainsRefusals: boolean;
  readonly request: BackEnd['request'];

  constructor(back: BackEnd) {
    super();
    this.#back = back;
    this.explainsRefusals = back.explainsRefusals;
    this.request = back.request.bind(back);
  }

  get maxTransfer(): number {
    return this.#back.maxTransfer;
  }

  get isClosed(): boolean {
    return this.#back.isClosed;
  }

  close(): void {}
}

type Migration = MigrationClient<LentBackEnd>;

/** The migration of the device behind one back end. */
async function openMigration(back: BackEnd, trap: boolean): Promise<Migration> {
  const lent = new LentBackEnd(back);
  const byCommands = new MigrationClient(lent);
  const hasV2 = await byCommands.probeFeature(Feature.MIGRATION, FeatureFlag.GET);
  const device = hasV2 ? byCommands : await RegionMigrationClient.open(lent, { map: !trap });
  if (device !== undefined && ((await device.flags()) & MigrationFlag.STOP_COPY) !== 0) return device;
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
  readonly #source: Migration;
  readonly #destination: Migration;
  readonly #stopping: () => void;
  /** Bytes of state that have reached the destination. */
  bytes = 0;

  private constructor(source: Migration, destination: Migration, stopping: () => void) {
    this.#source = source;
    this.#destination = destination;
    this.#stopping = stopping;
  }

  /**
   * Makes sure that both can do it, on the same image, and has the destination wait for it.
   * @throws DEVSTATE_E_NOT_MIGRATABLE, DEVSTATE_E_INCOMPATIBLE
   */
  static async prepare(
    from: BackEnd,
    to: BackEnd,
    { imageUnchecked, trap, stopping }: MoveOptions,
  ): Promise<StateMove> {
    const source = await openMigration(from, trap);
    let destination: Migration | undefined;
    try {
      destination = await openMigration(to, trap);
      if (!imageUnchecked)
        await requireSameImages({ path: from.path, device: source }, { path: to.path, device: destination });
      await destination.setState(RESUMING);
      return new StateMove(source, destination, stopping);
    } catch (error) {
      destination?.close();
      source.close();
      throw error;
    }
  }

  /** Stops the source and has the destination load its state, stopped still. */
  async move(): Promise<void> {
    const [source, destination] = [this.#source, this.#destination];
    this.#stopping();
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
