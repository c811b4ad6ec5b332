// SPDX-License-Identifier: Apache-2.0
// Calls that run on a thread of libuv's pool and give a promise: work on memory or a file that takes as long as it is large.
#include <fcntl.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstring>

#include "support.h"

namespace devstate {
namespace {

struct Operation;
using Run = int64_t (*)(Operation*);

struct Operation {
  napi_async_work work = nullptr;
  napi_deferred deferred = nullptr;
  Run run = nullptr;
  int64_t result = -ECANCELED;
  /// Keep the arrays, and what is mapped under them, until the end.
  napi_ref arrays[2] = {nullptr, nullptr};
  RangeHold held[2];
  Bytes bytes[2];
  int fd = -1;
  int mode = 0;
  uint64_t offset = 0;
  uint64_t length = 0;
};

void Execute(napi_env, void* data) {
  auto* operation = static_cast<Operation*>(data);
  operation->result = operation->run(operation);
}

void Free(napi_env env, Operation* operation) {
  for (int i = 0; i < 2; i++) {
    if (operation->arrays[i] != nullptr) DeleteReference(env, operation->arrays[i]);
  }
  if (operation->work != nullptr && napi_delete_async_work(env, operation->work) != napi_ok) Failed(env, "no work");
  delete operation;
}

void Complete(napi_env env, napi_status status, void* data) {
  auto* operation = static_cast<Operation*>(data);
  int64_t result = status == napi_cancelled ? -ECANCELED : operation->result;
  napi_value value = Number(env, result);
  if (value == nullptr || napi_resolve_deferred(env, operation->deferred, value) != napi_ok) Failed(env, "no promise");
  Free(env, operation);
}

/// Has `operation`, which it takes, run on another thread → Promise of the result or the negative errno.
napi_value Start(napi_env env, Operation* operation, const char* name) {
  napi_value promise = nullptr;
  napi_value resource = nullptr;
  if (napi_create_string_utf8(env, name, NAPI_AUTO_LENGTH, &resource) != napi_ok ||
      napi_create_async_work(env, nullptr, resource, Execute, Complete, operation, &operation->work) != napi_ok ||
      napi_create_promise(env, &operation->deferred, &promise) != napi_ok ||
      napi_queue_async_work(env, operation->work) != napi_ok) {
    Free(env, operation);
    return Failed(env, "the operation cannot be queued");
  }
  return promise;
}

/// Keeps argument `index`, a Uint8Array, for the operation.
bool Keep(napi_env env, Arguments* args, size_t index, Operation* operation) {
  operation->bytes[index] = args->Uint8Array(index);
  if (args->failed()) return false;
  operation->held[index] = HoldRangeAt(env, operation->bytes[index].data, operation->bytes[index].length);
  return napi_create_reference(env, args->value(index), 1, &operation->arrays[index]) == napi_ok;
}

napi_value OnBytes(napi_env env, napi_callback_info info, const char* name, Run run) {
  Arguments args(env, info);
  auto* operation = new Operation;
  operation->run = run;
  if (!Keep(env, &args, 0, operation) || !Keep(env, &args, 1, operation)) {
    Free(env, operation);
    args.Fail("the bytes cannot be kept");
    return nullptr;
  }
  return Start(env, operation, name);
}

/// copyLater(target, source) → Promise of the bytes copied, the shorter length of the two.
napi_value CopyLater(napi_env env, napi_callback_info info) {
  return OnBytes(env, info, "devstate:copy", [](Operation* operation) -> int64_t {
    const auto& [target, source] = operation->bytes;
    size_t length = target.length < source.length ? target.length : source.length;
    if (length > 0) memmove(target.data, source.data, length);
    return static_cast<int64_t>(length);
  });
}

/// equalLater(one, other) → Promise of 1 when the two are as long and hold the same, else 0.
napi_value EqualLater(napi_env env, napi_callback_info info) {
  return OnBytes(env, info, "devstate:equal", [](Operation* operation) -> int64_t {
    const auto& [one, other] = operation->bytes;
    if (one.length != other.length) return 0;
    return one.length == 0 || memcmp(one.data, other.data, one.length) == 0 ? 1 : 0;
  });
}

/// allocateLater(fd, mode, offset, length) → Promise of 0 or the negative errno. The caller keeps the fd open until then.
napi_value AllocateLater(napi_env env, napi_callback_info info) {
  Arguments args(env, info);
  int fd = args.Fd(0);
  int mode = args.Int(1, 0);
  uint64_t offset = args.Size(2);
  uint64_t length = args.Size(3);
  if (args.failed()) return nullptr;
  auto* operation = new Operation;
  operation->fd = fd;
  operation->mode = mode;
  operation->offset = offset;
  operation->length = length;
  operation->run = [](Operation* self) -> int64_t {
    int result = fallocate(self->fd, self->mode, static_cast<off_t>(self->offset), static_cast<off_t>(self->length));
    return result < 0 ? -errno : 0;
  };
  return Start(env, operation, "devstate:allocate");
}

}  // namespace

void InitAsync(napi_env env, napi_value exports) {
  Export(env, exports, "copyLater", CopyLater);
  Export(env, exports, "equalLater", EqualLater);
  Export(env, exports, "allocateLater", AllocateLater);
}

}  // namespace devstate
