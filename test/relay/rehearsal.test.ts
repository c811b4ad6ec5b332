// SPDX-License-Identifier: Apache-2.0
/** What a relay rehearses is what it does: all that a session has goes over, and nothing is left behind. */
import t from 'tap';
import type { ReadSession } from '../../src/relay/handoff-document.js';
import { rehearseSession } from '../../src/relay/rehearsal.js';
import { Session } from '../../src/relay/session.js';
import { withoutLeak } from '../support/closes.js';

const options = {
  serverPath: () => '/no/server',
  holdMs: 1000,
  mapping: false,
  log: () => {},
  lost: () => {},
  closed: () => {},
};

t.test('the rehearsed session arrives with everything that a session has', (t) =>
  withoutLeak(t, async () => {
    const documents: ReadSession[] = [];
    await rehearseSession((fd, from) => {
      if (from !== undefined) documents.push(from.document);
      return new Session(fd, options, from);
    });
    t.equal(documents.length, 1);
    const [{ connection, held, log }] = documents as [ReadSession];
    t.equal(connection?.requests.length, 1, 'a request under way');
    t.equal(connection?.commands.waiting.length, 1, 'a command of the server');
    t.equal(held.length, 1, 'a request that waits');
    t.match(log.dma, [{ size: 4096, hasFd: false }]);
    t.match(log.interrupts, [{ actions: [{ vectors: [{ vector: 0 }] }], masked: [0] }]);
    t.equal(log.config.bytes.length, 1);
  }),
);
