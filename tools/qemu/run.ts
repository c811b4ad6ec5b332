// SPDX-License-Identifier: Apache-2.0
/** Runs a program to its end, for tools that are made of other programs. */
import { execFile } from 'node:child_process';
import { promisify } from 'node:util';

/** Runs a program; its stdout, or an error that ends with what it said on stderr. */
export async function run(
  command: string,
  args: readonly string[],
  options: {
    cwd?: string;
    environment?: Readonly<Record<string, string>>;
  } = {},
): Promise<string> {
  try {
    const { stdout } = await promisify(execFile)(command, args, {
      ...(options.cwd === undefined ? {} : { cwd: options.cwd }),
      env: { ...process.env, LC_ALL: 'C', ...options.environment },
      maxBuffer: 64 << 20,
    });
    return stdout;
  } catch (error) {
    const { stderr, message } = error as Error & { stderr?: string };
    const said = (stderr ?? '').trim().split('\n').slice(-4).join('\n');
    throw new Error(`${command}: ${said || message}`, {
      cause: error,
    });
  }
}
