// SPDX-License-Identifier: Apache-2.0
/**
 * The Controller State data structure of NVMe 2.1 as a controller gives it to Migration Receive (see
 * `../nvme/controller-state.ts`), without anything around it; behind it, zeros up to the size of the buffer.
 *
 * It has no magic number. It is recognised by 13 reserved bytes that are zero, two 16-byte sizes whose upper parts are,
 * and numbers of queues that make up the size that is said.
 */
import { DevstateError } from '../../errors.js';
import type { FieldMap } from '../fields.js';
import {
  CONTROLLER_STATE_HEADER_LENGTH,
  type ControllerStateHeader,
  decodeControllerStateHeader,
  decodeIoCompletionQueue,
  decodeIoQueuesHeader,
  decodeIoSubmissionQueue,
  IO_QUEUE_LENGTH,
  NVME_STATE_HEADER_LENGTH,
} from '../nvme/controller-state.js';
import type { Pull } from './pushed-input.js';
import { damaged, unsupported } from './section-context.js';
import { type WalkContext, walkedKind } from './walk-reader.js';
import { structure, unknown, unused } from './walk-steps.js';

const PROBE_LENGTH = CONTROLLER_STATE_HEADER_LENGTH + NVME_STATE_HEADER_LENGTH;

export const nvmeControllerStateKind = walkedKind({
  name: 'nvme-controller-state',
  title: 'NVMe Controller State data structure',
  probeLength: PROBE_LENGTH,
  matches(first) {
    if (first.length < PROBE_LENGTH) return false;
    try {
      const { nvmeLength } = decodeControllerStateHeader(first);
      const { submissionQueues, completionQueues } = decodeIoQueuesHeader(
        first.subarray(CONTROLLER_STATE_HEADER_LENGTH),
      );
      return nvmeLength === queuesLength(submissionQueues + completionQueues);
    } catch {
      return false;
    }
  },
  *walk(context) {
    const { fields } = context;
    let header: ControllerStateHeader | undefined;
    yield* structure(context, 'header', CONTROLLER_STATE_HEADER_LENGTH, (bytes) => {
      header = sound(context, () => decodeControllerStateHeader(bytes));
      return { ...header };
    });
    const { nvmeLength, vendorLength, suspended } = header!;
    fields.suspended = suspended;
    if (nvmeLength > 0) yield* walkQueues(context, nvmeLength);
    yield* unknown(context, 'vendor specific', vendorLength);
    yield* unused(context);
  },
});

function* walkQueues(context: WalkContext, length: number): Pull<void> {
  const { input, tree, fields } = context;
  tree.begin('nvme controller state', input.offset);
  let queues = { submissionQueues: 0, completionQueues: 0 };
  yield* structure(context, 'header', Math.min(length, NVME_STATE_HEADER_LENGTH), (bytes) => {
    const { version, ...counts } = sound(context, () => decodeIoQueuesHeader(bytes));
    queues = counts;
    return { version, ...counts };
  });
  const { submissionQueues, completionQueues } = queues;
  const expected = queuesLength(submissionQueues + completionQueues);
  if (length !== expected) {
    throw damaged(input.offset, `the queues take ${expected} bytes, NVMECSS says ${length}`);
  }
  fields.submissionQueues = submissionQueues;
  fields.completionQueues = completionQueues;
  const entry = (name: string, decode: (bytes: Uint8Array) => object) =>
    structure(
      context,
      name,
      IO_QUEUE_LENGTH,
      (bytes) => ({ ...sound(context, () => decode(bytes)) }) as FieldMap,
    );
  for (let index = 0; index < submissionQueues; index++)
    yield* entry('submission queue', decodeIoSubmissionQueue);
  for (let index = 0; index < completionQueues; index++)
    yield* entry('completion queue', decodeIoCompletionQueue);
  tree.end(input.offset);
}

/** Bytes of an NVMe Controller State with so many queues. */
function queuesLength(queues: number): number {
  return NVME_STATE_HEADER_LENGTH + queues * IO_QUEUE_LENGTH;
}

/** What the codec refuses is damage in the content, or of a version that is not known. */
function sound<T>({ input }: WalkContext, decode: () => T): T {
  try {
    return decode();
  } catch (error) {
    if (!(error instanceof DevstateError)) throw error;
    const { code, message } = error;
    throw code === 'DEVSTATE_E_FORMAT_VERSION'
      ? unsupported(input.offset, message)
      : damaged(input.offset, message);
  }
}
