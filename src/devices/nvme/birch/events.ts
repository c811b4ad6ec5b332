// SPDX-License-Identifier: Apache-2.0
/**
 * Asynchronous events (NVMe 1.4, section 5.2): a short queue in the image of events that no one has asked for yet, and a
 * bit for each type that was reported and not read about. The requests are command slots that wait in the engine.
 */

import { Status } from '../spec/index.js';
import type { Birch } from './birch.js';
import type { ControllerImage } from './controller-image.js';
import { EVENT_SIZE, EVENT_SLOTS, Events } from './layout.js';

/** Queues an event, unless the same one is there already, and answers a request with it if there is one. */
export function raiseEvent(birch: Birch, type: number, information: number, page: number): void {
  const { image } = birch;
  const count = image.u8(Events.COUNT);
  let known = false;
  for (let at = Events.SLOTS; at < Events.SLOTS + count * EVENT_SIZE; at += EVENT_SIZE) {
    known ||= image.u8(at) === type && image.u8(at + 1) === information;
  }
  if (!known && count < EVENT_SLOTS) {
    image.bytes.set([type, information, page, 0], Events.SLOTS + count * EVENT_SIZE);
    image.setU8(Events.COUNT, count + 1);
  }
  answerRequests(birch);
}

/** Answers waiting requests with the events that may be told. */
export function answerRequests({ image, engine }: Birch): void {
  for (let index = 0; index < image.u8(Events.COUNT) && engine.waiting > 0; ) {
    const at = Events.SLOTS + index * EVENT_SIZE;
    const type = image.u8(at);
    const masked = image.u8(Events.MASKED);
    if ((masked & (1 << type)) !== 0) {
      index++;
      continue;
    }
    const result = type | (image.u8(at + 1) << 8) | (image.u8(at + 2) << 16);
    image.setU8(Events.MASKED, masked | (1 << type));
    removeEvent(image, index);
    engine.answerOldest(Status.SUCCESS, result);
  }
}

/** A log page was read: events of its type may be told again, and those that point to it are old news. */
export function pageRead({ image }: Birch, page: number, type: number): void {
  image.setU8(Events.MASKED, image.u8(Events.MASKED) & ~(1 << type));
  for (let index = image.u8(Events.COUNT) - 1; index >= 0; index--) {
    if (image.u8(Events.SLOTS + index * EVENT_SIZE + 2) === page) removeEvent(image, index);
  }
}

function removeEvent(image: ControllerImage, index: number): void {
  const at = Events.SLOTS + index * EVENT_SIZE;
  const end = Events.SLOTS + EVENT_SLOTS * EVENT_SIZE;
  image.bytes.copyWithin(at, at + EVENT_SIZE, end);
  image.bytes.fill(0, end - EVENT_SIZE, end);
  image.setU8(Events.COUNT, image.u8(Events.COUNT) - 1);
}
