// SPDX-License-Identifier: Apache-2.0
// What every file of the addon shares: reading arguments, making results, per-environment data.
//
// Rules of the addon: a call checks its arguments, makes one system call and returns its value or the negative errno.
// A wrong argument type is a TypeError, an errno never is.
//
// C++ exceptions are on: whatever fails in JavaScript's engine is a Napi::Error, which the library's callbacks turn into
// the exception of JavaScript. So every resource must have an owner that releases it on the way (RAII). An environment
// that is terminated refuses calls at any moment, and each such refusal is an exception too.
#pragma once

#include <napi.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <utility>

namespace devstate {

class Range;
struct Memory;
struct PollHandle;

/// What is mapped, by address. Ranges share it, because some are collected after the environment's data.
using MappedRanges = std::map<uintptr_t, std::weak_ptr<Range>>;

/// Data of one JavaScript environment (the main thread or a worker).
struct AddonData {
  Napi::FunctionReference pollerClass;
  Napi::FunctionReference mappingClass;
  napi_async_cleanup_hook_handle cleanup = nullptr;
  std::shared_ptr<MappedRanges> mapped = std::make_shared<MappedRanges>();
  /// Memory with pins. The I/O that they stand for has ended when the environment's data goes.
  std::set<std::shared_ptr<Memory>> pinned;
  /// Every handle that is not fully closed.
  std::set<PollHandle*> pollHandles;
  bool closing = false;
};

/// Throws what the engine reports unless `status` is good.
inline void Check(Napi::Env env, napi_status status) {
  if (status != napi_ok) throw Napi::Error::New(env);
}

[[noreturn]] void ThrowTypeError(Napi::Env env, const char* message);

/// Bytes of a Uint8Array. `data` is valid for the duration of the call only.
struct Bytes {
  uint8_t* data = nullptr;
  size_t length = 0;
};

/// Arguments of one call. Each reader throws a TypeError for a wrong one: the library's own conversions check nothing.
class Args {
 public:
  /// Most items of an array that Parts() reads.
  static constexpr uint32_t kMaxParts = 1024;

  explicit Args(const Napi::CallbackInfo& info) : info_(info) {}

  /// Whether the argument was given and is not undefined.
  bool Has(size_t index) const { return index < info_.Length() && !info_[index].IsUndefined(); }
  /// An integer of 32 bits from `minimum` on. Not NaN, not a fraction, not -0: each of them is a mistake of the caller's.
  int32_t Int(size_t index, int32_t minimum = INT32_MIN, int32_t maximum = INT32_MAX) const;
  /// A number of a file: 0 to 2^31-1.
  int Fd(size_t index) const { return Int(index, 0); }
  uint32_t Unsigned(size_t index) const;
  /// A non-negative safe integer: offsets, lengths, addresses.
  uint64_t Size(size_t index) const;
  /// Copies the string with its NUL. False when it does not fit or holds a NUL.
  bool String(size_t index, char* out, size_t capacity) const;
  Bytes Uint8Array(size_t index) const;
  /// The items of an Int32Array; `null` or `undefined` gives {nullptr, 0} when `optional`.
  int32_t* Int32Array(size_t index, size_t* length, bool optional = false) const;
  double* Float64Array(size_t index, size_t minimum) const;
  Napi::Function Function(size_t index) const;
  /// Points `parts` at a Uint8Array or at the items of an array; their count, more than `most` when there are too many. JavaScript of the caller
  /// (getters of the array) runs before the first is looked at, so that it cannot take away what was found.
  uint32_t Parts(size_t index, iovec* parts, uint32_t most) const;
  /// Throws a TypeError that says what the argument must be.
  [[noreturn]] void Fail(size_t index, const char* expected) const;

 private:
  /// A number that is integral and from `minimum` to `maximum`.
  bool Integer(size_t index, double minimum, double maximum, double* out) const;
  bool Typed(size_t index, napi_typedarray_type expected, void** data, size_t* length) const;

  const Napi::CallbackInfo& info_;
};

Napi::Value Number(Napi::Env env, int64_t value);

/// The value of a system call, or the negative of errno when it is negative.
inline Napi::Value Result(Napi::Env env, int64_t returned) { return Number(env, returned < 0 ? -errno : returned); }

/// Adds a function `name` to `exports`.
template <Napi::Value (*call)(const Napi::CallbackInfo&)>
void Export(Napi::Object exports, const char* name) {
  exports.Set(name, Napi::Function::New<call>(exports.Env(), name));
}

// Each file registers what it exports.
void InitAsync(Napi::Object exports);
void InitCounted(Napi::Object exports);
void InitCrc32c(Napi::Object exports);
void InitEvent(Napi::Object exports);
void InitFile(Napi::Object exports);
void InitMemory(Napi::Object exports);
void InitPath(Napi::Object exports);
void InitOutput(Napi::Object exports);
void InitPoll(Napi::Object exports);
void InitSocket(Napi::Object exports);
void InitVfio(Napi::Object exports);

/// Address and length of what a Mapping object maps; nullptr when `value` is none or unmapped.
uint8_t* MappedMemory(Napi::Value value, uint64_t* length);

/// Keeps the range that `bytes` lie in mapped for as long as it lives; nullptr when they lie in none. To be dropped on the
/// thread of `env`.
using RangeHold = std::shared_ptr<Range>;
RangeHold HoldRangeAt(Napi::Env env, const uint8_t* bytes, size_t length);

/// Copies every fd of every SCM_RIGHTS message to `out`, after their count and whether some were lost; `capacity` is that of
/// `out`. Those that do not fit are closed and count as lost.
void TakeFds(msghdr* message, int32_t* out, size_t capacity);

/// Starts closing every poller of an environment that ends; the last one to close removes the cleanup hook.
void CloseAllPollers(AddonData* data);

}  // namespace devstate
