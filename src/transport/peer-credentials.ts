// SPDX-License-Identifier: Apache-2.0
import { native } from '../native/index.js';
import type { Fd } from './fd.js';

/** Pid, uid and gid of a UNIX socket's peer when it connected, or began to listen; pid 0 if it is in a namespace that we do not see. */
export function peerCredentialsOf(fd: Fd): { pid: number; uid: number; gid: number } {
  const out = new Int32Array(3);
  native.peerCredentials(fd.number, out);
  return { pid: out[0]!, uid: out[1]!, gid: out[2]! };
}
