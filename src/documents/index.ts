// SPDX-License-Identifier: Apache-2.0
/** What processes of devstate say to each other: packed documents, the messages that carry them, requests and answers. */

export { type Answer, type Answering, Asker, type AskOptions, answerAll, refuseRequests } from './ask.js';
export { Channel, type ChannelOptions, type ReceivedMessage } from './channel.js';
export {
  decodeDocument,
  encodeMessage,
  FIRST_VERSION,
  HANDOFF_VERSION,
  HandoffMessage,
  MAX_REQUEST_MESSAGE,
  otherVersion,
} from './messages.js';
export {
  documentBytes,
  MAX_DOCUMENT_DEPTH,
  MAX_DOCUMENT_VALUES,
  malformed,
  packDocument,
  unpackDocument,
} from './packed.js';
