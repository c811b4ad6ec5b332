// SPDX-License-Identifier: Apache-2.0
/**
 * Has something happen at the moment at which code in this process gives QEMU a command for the first time: before QEMU is
 * given it, or when it has answered.
 */
import { QmpClient } from '../../../src/qemu/index.js';

export interface Moment {
  /** The QEMU's QMP socket; any, if absent. */
  readonly qmpPath?: string;
  readonly command: string;
  readonly when: 'before' | 'after';
}

/** @returns settles like `work`, when that was done */
export function atCommand<T>({ qmpPath, command, when }: Moment, work: () => Promise<T> | T): Promise<T> {
  const execute = QmpClient.prototype.execute as (this: QmpClient, ...args: unknown[]) => Promise<unknown>;
  return new Promise((resolve, reject) => {
    const happen = async (): Promise<void> => {
      try {
        resolve(await work());
      } catch (error) {
        reject(error);
      }
    };
    let isDone = false;
    QmpClient.prototype.execute = async function (this: QmpClient, ...args: unknown[]): Promise<never> {
      const isIt = !isDone && args[0] === command && (qmpPath === undefined || this.path === qmpPath);
      if (!isIt) return (await execute.apply(this, args)) as never;
      isDone = true;
      QmpClient.prototype.execute = execute as typeof QmpClient.prototype.execute;
      if (when === 'before') await happen();
      const answer = await execute.apply(this, args);
      if (when === 'after') await happen();
      return answer as never;
    };
  });
}
