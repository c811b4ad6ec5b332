// SPDX-License-Identifier: Apache-2.0
/** Requests and answers over a channel: each is answered once, and what is no answer is not taken for one. */

import fc from 'fast-check';
import t, { type Test } from 'tap';
import {
  type Answer,
  Asker,
  answerAll,
  Channel,
  encodeMessage,
  FIRST_VERSION,
  HandoffMessage,
  MAX_REQUEST_MESSAGE,
  packDocument,
  refuseRequests,
  unpackDocument,
} from '../../src/documents/index.js';
import { DevstateError } from '../../src/errors.js';
import { Errno } from '../../src/native/index.js';
import { closeAll, type Fd, socketPair } from '../../src/transport/index.js';
import { z } from '../../src/zod.js';
import { withoutLeak } from '../support/closes.js';
import { eventfd } from '../support/memory.js';
import { until } from '../support/served.js';

const options = { maxMessageLength: MAX_REQUEST_MESSAGE };

interface Pair {
  readonly asker: Asker;
  /** The other end. */
  readonly channel: Channel;
}

async function withPair(t: Test, work: (pair: Pair) => Promise<void>): Promise<void> {
  await withoutLeak(t, async () => {
    const [left, right] = socketPair();
    const asker = new Asker(new Channel(left, options), 'the other end');
    const channel = new Channel(right, options);
    try {
      await work({ asker, channel });
    } finally {
      asker.close();
      channel.abort();
    }
  });
}

/** With one that answers. */
function withAnswers(
  t: Test,
  carryOut: (request: unknown, fds: readonly Fd[]) => Promise<Answer> | Answer,
  work: (pair: Pair) => Promise<void>,
): Promise<void> {
  return withPair(t, async (pair) => {
    const ended = t.rejects(answerAll(pair.channel, { carryOut }), { code: 'DEVSTATE_E_CONNECTION_CLOSED' });
    await work(pair);
    pair.asker.close();
    await ended;
  });
}

const echo = (document: unknown): Answer => ({ document });

/** A response as its bytes. */
function responseTo(id: number, document: unknown): Uint8Array {
  const packed = packDocument(document);
  const bytes = new Uint8Array(4 + packed.length);
  new DataView(bytes.buffer).setUint32(0, id, true);
  bytes.set(packed, 4);
  return bytes;
}

const respond = (channel: Channel, id: number, document: unknown, fds: readonly Fd[] = []): Promise<void> =>
  channel.send(HandoffMessage.RESPONSE, responseTo(id, document), fds);

/** A request that came. */
async function requested(channel: Channel): Promise<{ id: number; request: unknown }> {
  const { payload } = await channel.expect(HandoffMessage.REQUEST);
  const id = new DataView(payload.buffer, payload.byteOffset).getUint32(0, true);
  return { id, request: unpackDocument(payload.subarray(4)) };
}

t.test('whatever is asked is answered', (t) =>
  withAnswers(t, echo, async ({ asker }) => {
    await fc.assert(
      fc.asyncProperty(fc.array(fc.jsonValue({ maxDepth: 3 }), { maxLength: 20 }), async (requests) => {
        const fitting = requests.map((request) =>
          JSON.parse(JSON.stringify(request).replaceAll('__proto__', '')),
        );
        const answers = await Promise.all(fitting.map((request) => asker.ask(request, z.unknown())));
        t.strictSame(answers, fitting);
      }),
      { numRuns: 50 },
    );
  }),
);

t.test('an error has its code, its words and its errno', (t) => {
  const carryOut = (request: unknown): never => {
    if (request === 'plain') throw new Error('something else');
    throw new DevstateError('DEVSTATE_E_RELAY', 'not now', { errno: Errno.EBUSY });
  };
  return withAnswers(t, carryOut, async ({ asker }) => {
    await t.rejects(asker.ask(null, z.null()), {
      code: 'DEVSTATE_E_RELAY',
      message: 'not now',
      errno: Errno.EBUSY,
    });
    await t.rejects(asker.ask('plain', z.null()), { code: 'DEVSTATE_E_INTERNAL', message: 'something else' });
  });
});

t.test('a code of a newer version is a refusal', (t) =>
  withPair(t, async ({ asker, channel }) => {
    const asked = asker.ask(1, z.unknown());
    const { id } = await requested(channel);
    await respond(channel, id, { error: { code: 'DEVSTATE_E_TOMORROW', message: 'no' } });
    await t.rejects(asked, { code: 'DEVSTATE_E_REFUSED', message: 'no' });
  }),
);

t.test('fds go along, and stay open nowhere', (t) => {
  const carryOut = (request: unknown, fds: readonly Fd[]): Answer => {
    t.equal(fds.length, 2);
    return { document: request, fds: [eventfd(), eventfd(), eventfd()] };
  };
  return withAnswers(t, carryOut, async ({ asker }) => {
    const mine = [eventfd(), eventfd()];
    const { document, fds } = await asker.askForFds('fds', z.string(), { fds: mine });
    t.equal(document, 'fds');
    t.equal(fds.length, 3);
    closeAll(fds);
    await asker.ask('not for these', z.string(), { fds: mine });
    await t.rejects(asker.ask('wrong', z.number(), { fds: mine }), { code: 'DEVSTATE_E_PROTOCOL' });
    closeAll(mine);
  });
});

t.test('a late answer is left, with its fds, and the next request has its own', (t) =>
  withPair(t, async ({ asker, channel }) => {
    const late = asker.ask('slow', z.string(), { timeoutMs: 1 });
    await t.rejects(late, {
      code: 'DEVSTATE_E_REQUEST_TIMEOUT',
      message: 'the other end did not answer within 1 ms; see whether it runs',
    });
    const first = await requested(channel);
    const next = asker.ask('next', z.string());
    const second = await requested(channel);
    const fd = eventfd();
    await respond(channel, first.id, { answer: 'late' }, [fd]);
    fd.close();
    await respond(channel, second.id, { answer: 'in time' });
    t.equal(await next, 'in time');
    // Once is enough.
    const third = asker.ask('third', z.string());
    await requested(channel);
    await respond(channel, first.id, { answer: 'late' });
    await t.rejects(third, { code: 'DEVSTATE_E_PROTOCOL' });
  }),
);

t.test('answers in another order reach who asked', (t) =>
  withPair(t, async ({ asker, channel }) => {
    const asked = ['a', 'b', 'c'].map((name) => asker.ask(name, z.string()));
    const came = [await requested(channel), await requested(channel), await requested(channel)];
    for (const { id, request } of came.reverse()) await respond(channel, id, { answer: request });
    t.same(await Promise.all(asked), ['a', 'b', 'c']);
  }),
);

t.test('what is no answer ends the connection, and every request', async (t) => {
  const cases: [string, (channel: Channel, id: number) => Promise<void>][] = [
    ['to no request', (channel, id) => respond(channel, id + 7, { answer: 1 })],
    [
      'twice',
      async (channel, id) => {
        await respond(channel, id, { answer: 1 });
        await respond(channel, id, { answer: 1 });
      },
    ],
    ['neither answer nor error', (channel, id) => respond(channel, id, { reply: 1 })],
    ['to none, and no error', (channel) => respond(channel, 0, { answer: 1 })],
    [
      'an error without words',
      (channel, id) => respond(channel, id, { error: { code: 'DEVSTATE_E_RELAY' } }),
    ],
    ['no number', (channel) => channel.send(HandoffMessage.RESPONSE, new Uint8Array(3))],
    ['no document', (channel) => channel.send(HandoffMessage.RESPONSE, new Uint8Array(4))],
    [
      'no document behind the number',
      (channel, id) => channel.send(HandoffMessage.RESPONSE, Uint8Array.of(id, 0, 0, 0, 0xc1)),
    ],
    ['another message', (channel) => channel.send(HandoffMessage.READY, packDocument(null))],
    ['another version', (channel) => channel.sendDocument(HandoffMessage.RESPONSE, {}, FIRST_VERSION)],
    [
      'one that is too long',
      (channel, id) => respond(channel, id, { answer: 'x'.repeat(MAX_REQUEST_MESSAGE) }),
    ],
  ];
  for (const [name, answer] of cases) {
    await t.test(name, (t) =>
      withPair(t, async ({ asker, channel }) => {
        const [one, other] = [asker.ask(1, z.number()), asker.ask(2, z.number())];
        const { id } = await requested(channel);
        const ends = Promise.allSettled([one, other]);
        await answer(channel, id).catch(() => {});
        const error = {
          code: 'DEVSTATE_E_PROTOCOL',
          message: /what the other end answers is not understood/,
        };
        const [first, second] = await ends;
        if (name === 'twice') t.match(first, { status: 'fulfilled', value: 1 });
        else t.match(first, { reason: error });
        t.match(second, { reason: error });
        await t.rejects(asker.ask(3, z.number()), error, 'and from then on');
      }),
    );
  }
});

t.test('noise is no answer', (t) =>
  withoutLeak(t, async () => {
    const [left, right] = socketPair();
    const asker = new Asker(new Channel(left, options), 'the other end');
    const asked = asker.ask(1, z.number());
    const { MessageSocket } = await import('../../src/transport/index.js');
    const limits = { maxMessageLength: 64, maxFds: 0, maxQueuedBytes: 64 };
    const framing = { headerLength: 16, messageLength: () => 16 };
    const noise = new MessageSocket(right, framing, limits, { message: () => {}, closed: () => {} });
    noise.send(new TextEncoder().encode('{"error": {"code": "DEVSTATE_E_USAGE"}}\n'));
    await t.rejects(asked, { code: 'DEVSTATE_E_PROTOCOL' });
    noise.close();
  }),
);

t.test('a connection that is closed ends every request', (t) =>
  withPair(t, async ({ asker, channel }) => {
    const [one, other] = [asker.ask(1, z.number()), asker.ask(2, z.number(), { timeoutMs: 60_000 })];
    const ends = Promise.allSettled([one, other]);
    await requested(channel);
    channel.end();
    const error = {
      code: 'DEVSTATE_E_CONNECTION_CLOSED',
      message: 'the other end closed the connection without an answer',
    };
    for (const end of await ends) t.match(end, { reason: error });
    await t.rejects(asker.ask(3, z.number()), error);
  }),
);

t.test('requests are bounded, in length and in number', (t) =>
  withPair(t, async ({ asker }) => {
    await t.rejects(asker.ask('x'.repeat(MAX_REQUEST_MESSAGE), z.unknown()), {
      code: 'DEVSTATE_E_HANDOFF_BUNDLE',
      message: /cannot be sent/,
    });
    const asked = Array.from({ length: 1024 }, () => asker.ask(null, z.unknown(), { timeoutMs: 60_000 }));
    const ends = Promise.allSettled(asked);
    await t.rejects(asker.ask(null, z.unknown()), { code: 'DEVSTATE_E_REQUEST_LIMIT' });
    asker.close();
    for (const end of await ends) t.match(end, { reason: { code: 'DEVSTATE_E_CONNECTION_CLOSED' } });
  }),
);

t.test('an answer that is too long is an error, and its fds are closed', (t) => {
  const carryOut = (): Answer => ({ document: 'x'.repeat(MAX_REQUEST_MESSAGE), fds: [eventfd()] });
  return withAnswers(t, carryOut, async ({ asker }) => {
    await t.rejects(asker.ask(1, z.string()), { message: /an answer of \d+ bytes cannot be sent/ });
    await t.rejects(asker.ask(2, z.string()), { message: /cannot be sent/ }, 'and the connection lasts');
  });
});

t.test('one request after the other is carried out, and said to be under way', (t) =>
  withPair(t, async ({ asker, channel }) => {
    const busy: boolean[] = [];
    let running = 0;
    const carryOut = async (request: unknown): Promise<Answer> => {
      t.equal(++running, 1);
      await until(() => busy.at(-1) === true);
      running--;
      return { document: request };
    };
    const ended = answerAll(channel, { carryOut, busy: (now) => busy.push(now) });
    t.same(await Promise.all([1, 2, 3].map((number) => asker.ask(number, z.number()))), [1, 2, 3]);
    asker.close();
    await t.rejects(ended, { code: 'DEVSTATE_E_CONNECTION_CLOSED' });
    t.same(busy, [true, false, true, false, true, false]);
  }),
);

t.test('hostile requests are answered, or end the connection', (t) =>
  withPair(t, async ({ channel }) => {
    channel.abort();
    await fc.assert(
      fc.asyncProperty(
        fc.uint8Array({ maxLength: 40 }),
        fc.integer({ min: 0, max: 12 }),
        async (payload, type) => {
          const [left, right] = socketPair();
          const theirs = new Channel(left, options);
          const ours = new Channel(right, options);
          const ended = answerAll(ours, { carryOut: echo }).catch((error: DevstateError) => error.code);
          await theirs.send(type as HandoffMessage, payload);
          const { type: said, payload: answer } = await theirs.next();
          t.equal(said, type === HandoffMessage.PREPARE ? 33 : HandoffMessage.RESPONSE);
          if (said === HandoffMessage.RESPONSE) unpackDocument(answer.subarray(4));
          theirs.end();
          t.match(await ended, /DEVSTATE_E_(CONNECTION_CLOSED|HANDOFF_BUNDLE)/);
          ours.end();
        },
      ),
      { numRuns: 300 },
    );
  }),
);

t.test('where there is no room all requests are refused at once', (t) =>
  withPair(t, async ({ asker, channel }) => {
    const error = { code: 'DEVSTATE_E_RELAY', message: 'too many clients' } as const;
    const asked = [asker.ask(1, z.number()), asker.ask(2, z.number())];
    const ends = Promise.allSettled(asked);
    refuseRequests(channel, new DevstateError(error.code, error.message));
    for (const end of await ends) t.match(end, { reason: error });
  }),
);

t.test('a request begins a line and ends it, for relays that read lines', async (t) => {
  const bytes = encodeMessage(HandoffMessage.REQUEST, packDocument({ command: 'status' }));
  t.ok(bytes.subarray(0, 16).includes(0x0a));
});
