// SPDX-License-Identifier: Apache-2.0
/** Sockets that carry messages and file descriptors. */

export { CloseGate } from './close-gate.js';
export { closeAll, Fd, peerGroup, receivedFds } from './fd.js';
export { connect, Listener, type ListenOptions, socketPair } from './listener.js';
export type { Frame, Framing, MessageHandler, MessageLimits, SendOptions } from './message.js';
export { BURST_MS, MessageSocket } from './message-socket.js';
export { type Completion, RequestTable } from './request-table.js';
export { bindAt, setSocketMode, setSocketOwner } from './socket-path.js';
export { SocketWatcher } from './socket-watcher.js';
export { type StreamHandler, StreamSocket } from './stream-socket.js';
