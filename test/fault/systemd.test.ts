// SPDX-License-Identifier: Apache-2.0
/**
 * The unit of docs/run.md under systemd itself: the server is killed under a guest that writes, systemd keeps its open
 * files and starts the next one. A user's service manager does it, of this test's own, beside whatever runs the machine.
 */

import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { accessSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { promisify } from 'node:util';
import t, { type Test } from 'tap';
import { BlockWriter, GuestMachine, NvmeDriver } from '../../src/guest-driver/index.js';
import { MAIN } from '../support/main.js';

t.setTimeout(900_000);

const SYSTEMD = '/lib/systemd/systemd';
const PAGE = new URL('../../../docs/run.md', import.meta.url);
/** The unit allows five starts a minute. */
const KILLS = 4;

/** systemd starts where a directory of its says that it runs the machine: it is shown one that no one else sees. */
const START = `mount -t tmpfs none /run && mkdir -p /run/systemd/system && exec ${SYSTEMD} --user`;

/** Why it cannot be run here; false if it can. */
function obstacle(): string | false {
  if (!existsSync(SYSTEMD)) return 'systemd is not installed';
  try {
    accessSync('/sys/fs/cgroup/systemd');
  } catch {
    return 'there is no cgroup hierarchy that systemd could use';
  }
  return process.getuid?.() === 0 ? false : 'a mount of its own takes root';
}

class ServiceManager {
  readonly directory = mkdtempSync('/tmp/devstate-systemd-test-');
  readonly #environment = {
    ...process.env,
    XDG_RUNTIME_DIR: this.directory,
    XDG_CONFIG_HOME: join(this.directory, 'config'),
  };
  readonly #process: ChildProcess;

  /** @param unit of the service `disk` */
  constructor(t: Test, unit: (directory: string) => string) {
    const units = join(this.directory, 'config/systemd/user');
    mkdirSync(units, { recursive: true });
    writeFileSync(join(units, 'disk.service'), unit(this.directory));
    this.#process = spawn('unshare', ['--mount', 'sh', '-c', START], {
      env: this.#environment,
      stdio: ['ignore', 'ignore', 'inherit'],
    });
    t.teardown(async () => {
      const ended = once(this.#process, 'exit');
      if (this.#process.exitCode === null) {
        await this.ctl('exit').catch(() => this.#process.kill('SIGKILL'));
        await ended;
      }
      rmSync(this.directory, { recursive: true });
    });
  }

  /** It takes orders. */
  async ready(): Promise<void> {
    while (!existsSync(join(this.directory, 'systemd/private'))) {
      if (this.#process.exitCode !== null) throw new Error(`systemd ended with ${this.#process.exitCode}`);
      await delay(20);
    }
  }

  async ctl(...words: string[]): Promise<string> {
    const { stdout } = await promisify(execFile)('systemctl', ['--user', ...words], {
      env: this.#environment,
    });
    return stdout.trim();
  }

  async property(name: string): Promise<number> {
    return Number(await this.ctl('show', '--property', name, '--value', 'disk.service'));
  }
}

/** The unit of the page, of this server and these paths. systemd before 254 does not tell the server that it keeps fds. */
function unitOfThePage(directory: string): string {
  const unit = /```text\n(\[Service\]\n[^`]*)```/.exec(readFileSync(PAGE, 'utf8'))?.[1];
  if (unit === undefined) throw new Error('the page shows no unit');
  return unit
    .replace('/usr/bin/devstate', `${process.execPath} ${MAIN}`)
    .replace(/\/run\/devstate\/(\S+)/, `${directory}/$1`)
    .replace(/\/var\/lib\/devstate\/(\S+)/, `${directory}/$1 --size 16M --journal`);
}

t.test('the server is killed, and the guest continues', { skip: obstacle() }, async (t) => {
  const manager = new ServiceManager(t, unitOfThePage);
  await manager.ready();
  await manager.ctl('start', 'disk.service');
  const machine = await GuestMachine.start(join(manager.directory, 'disk.sock'));
  t.teardown(() => machine.close());
  const driver = await NvmeDriver.start(machine, { queues: 2 });
  t.teardown(() => driver.detach());
  const writer = new BlockWriter(driver, { blocks: 1024, depth: 4 });
  for (let kill = 1; kill <= KILLS; kill++) {
    await writer.progress(100);
    const pid = await manager.property('MainPID');
    await manager.ctl('kill', '--signal=KILL', 'disk.service');
    await writer.progress(100);
    t.not(await manager.property('MainPID'), pid, 'another process');
    t.equal(await manager.property('NRestarts'), kill);
    t.ok((await manager.property('NFileDescriptorStore')) > 3, 'systemd keeps its files');
  }
  await writer.stop();
  t.equal(await writer.readBack(), 1024);
  t.match(driver.counters, { failed: 0, timedOut: 0 });
  await manager.ctl('stop', 'disk.service');
  t.equal(await manager.property('NFileDescriptorStore'), 0, 'when it is stopped, nothing is kept');
});
