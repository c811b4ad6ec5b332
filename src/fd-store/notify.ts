// SPDX-License-Identifier: Apache-2.0
/**
 * Messages of a service to its service manager (sd_notify(3)): lines of `KEY=VALUE` in one datagram, the fds beside them.
 * Only what is needed to have fds kept: by systemd, or by `devstate run`, which speaks the same.
 */

/** Longest message. */
export const MAX_NOTIFY_LENGTH = 4096;

export type Notification =
  | { readonly kind: 'store'; readonly name: string }
  | { readonly kind: 'remove'; readonly name: string }
  | { readonly kind: 'ready' };

/** systemd takes names of 1 to 255 printable ASCII characters without a colon. */
const NAME = /^[\x21-\x39\x3b-\x7e]{1,255}$/;

export function encodeNotification(notification: Notification): Uint8Array {
  return Buffer.from(textOf(notification));
}

function textOf(notification: Notification): string {
  switch (notification.kind) {
    case 'store':
      // The manager would drop a connection whose other end has left; that is for the server to notice.
      return `FDSTORE=1\nFDNAME=${notification.name}\nFDPOLL=0`;
    case 'remove':
      return `FDSTOREREMOVE=1\nFDNAME=${notification.name}`;
    case 'ready':
      return 'READY=1';
  }
}

/** Undefined for a message that asks for none of these. */
export function decodeNotification(bytes: Uint8Array): Notification | undefined {
  const lines = Buffer.from(bytes).toString('latin1').split('\n');
  const fields = new Map(
    lines.map((line) => [line.slice(0, line.indexOf('=')), line.slice(line.indexOf('=') + 1)]),
  );
  const name = fields.get('FDNAME') ?? 'stored';
  if (fields.get('FDSTORE') === '1') return NAME.test(name) ? { kind: 'store', name } : undefined;
  if (fields.get('FDSTOREREMOVE') === '1') return NAME.test(name) ? { kind: 'remove', name } : undefined;
  return fields.get('READY') === '1' ? { kind: 'ready' } : undefined;
}
