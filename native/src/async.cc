// SPDX-License-Identifier: Apache-2.0
// Calls that run on a thread of libuv's pool and give a promise: work on memory or a file that takes as long as it is large.
#include <fcntl.h>
#include <sys/stat.h>

#include <cstring>
#include <functional>

#include "support.h"

namespace devstate {
namespace {

/// Runs a function on the pool; resolves a promise with what it gives, a value or the negative errno.
class Operation : public Napi::AsyncWorker {
 public:
  Operation(Napi::Env env, const char* name) : AsyncWorker(env, name), deferred_(env) {}

  /// Keeps argument `index`, a Uint8Array, and what is mapped under it, until the end.
  Bytes Keep(const Napi::CallbackInfo& info, size_t index) {
    Bytes bytes = Args(info).Uint8Array(index);
    held_[index] = HoldRangeAt(info.Env(), bytes.data, bytes.length);
    arrays_[index] = Napi::Persistent(info[index].As<Napi::Object>());
    return bytes;
  }

  static Napi::Value Start(std::unique_ptr<Operation> operation, std::function<int64_t()> run) {
    operation->run_ = std::move(run);
    operation->Queue();
    return operation.release()->deferred_.Promise();  // It deletes itself when it has ended.
  }

 protected:
  void Execute() override { result_ = run_(); }
  void OnOK() override { deferred_.Resolve(Number(Env(), result_)); }

 private:
  Napi::Promise::Deferred deferred_;
  std::function<int64_t()> run_;
  int64_t result_ = 0;
  Napi::ObjectReference arrays_[2];
  RangeHold held_[2];
};

/// copyLater(target, source) → Promise of the bytes copied, the shorter length of the two.
Napi::Value CopyLater(const Napi::CallbackInfo& info) {
  auto operation = std::make_unique<Operation>(info.Env(), "devstate:copy");
  Bytes target = operation->Keep(info, 0);
  Bytes source = operation->Keep(info, 1);
  return Operation::Start(std::move(operation), [target, source]() -> int64_t {
    size_t length = target.length < source.length ? target.length : source.length;
    if (length > 0) memmove(target.data, source.data, length);
    return static_cast<int64_t>(length);
  });
}

/// equalLater(one, other) → Promise of 1 when the two are as long and hold the same, else 0.
Napi::Value EqualLater(const Napi::CallbackInfo& info) {
  auto operation = std::make_unique<Operation>(info.Env(), "devstate:equal");
  Bytes one = operation->Keep(info, 0);
  Bytes other = operation->Keep(info, 1);
  return Operation::Start(std::move(operation), [one, other]() -> int64_t {
    if (one.length != other.length) return 0;
    return one.length == 0 || memcmp(one.data, other.data, one.length) == 0 ? 1 : 0;
  });
}

/// allocateLater(fd, mode, offset, length) → Promise of 0 or the negative errno. The caller keeps the fd open until then.
Napi::Value AllocateLater(const Napi::CallbackInfo& info) {
  Args args(info);
  int fd = args.Fd(0);
  int mode = args.Int(1, 0);
  auto offset = static_cast<off_t>(args.Size(2));
  auto length = static_cast<off_t>(args.Size(3));
  auto operation = std::make_unique<Operation>(info.Env(), "devstate:allocate");
  return Operation::Start(std::move(operation), [fd, mode, offset, length]() -> int64_t {
    return fallocate(fd, mode, offset, length) < 0 ? -errno : 0;
  });
}

}  // namespace

void InitAsync(Napi::Object exports) {
  Export<CopyLater>(exports, "copyLater");
  Export<EqualLater>(exports, "equalLater");
  Export<AllocateLater>(exports, "allocateLater");
}

}  // namespace devstate
