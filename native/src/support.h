// SPDX-License-Identifier: Apache-2.0
// What every file of the addon shares: reading arguments, making results, per-environment data.
//
// Rules of the addon: a call checks its arguments, makes one system call and returns its value or the negative errno.
// A wrong argument type is a TypeError, an errno never is. Raw Node-API is used throughout because the calls are on the
// path of every device register access.
#pragma once

#include <node_api.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>

namespace devstate {

struct Range;
struct Poller;

/// What is mapped, by address. Ranges share it, because some are collected after the environment's data.
using MappedRanges = std::map<uintptr_t, std::weak_ptr<Range>>;

/// Data of one JavaScript environment (the main thread or a worker).
struct AddonData {
  napi_env env = nullptr;
  napi_ref pollerClass = nullptr;
  napi_ref mappingClass = nullptr;
  napi_async_cleanup_hook_handle cleanup = nullptr;
  std::shared_ptr<MappedRanges> mapped = std::make_shared<MappedRanges>();
  Poller* pollers = nullptr;  ///< Every poller whose handle is not fully closed, as a doubly linked list.
  bool closing = false;
};

AddonData* GetAddonData(napi_env env);

/// Bytes of a Uint8Array. `data` is valid for the duration of the call only.
struct Bytes {
  uint8_t* data = nullptr;
  size_t length = 0;
};

/// Arguments of one call. The first wrong one throws a TypeError and sets `failed()`; later reads return zeros.
class Arguments {
 public:
  static constexpr size_t kMaximum = 8;
  /// Most items of an array that Parts() reads.
  static constexpr uint32_t kMaxParts = 1024;

  Arguments(napi_env env, napi_callback_info info);

  bool failed() const { return failed_; }
  napi_value self() const { return self_; }
  napi_value value(size_t index) const { return index < count_ ? values_[index] : nullptr; }

  /// Whether the argument was given and is not undefined.
  bool Has(size_t index);
  /// An integer of 32 bits from `minimum` on. Not NaN, not a fraction, not -0: each of them is a mistake of the caller's.
  int32_t Int(size_t index, int32_t minimum = INT32_MIN, int32_t maximum = INT32_MAX);
  /// A number of a file: 0 to 2^31-1.
  int Fd(size_t index) { return Int(index, 0); }
  uint32_t Unsigned(size_t index);
  /// A non-negative safe integer: offsets, lengths, addresses.
  uint64_t Size(size_t index);
  /// Copies the string with its NUL. False, without an exception, when it does not fit or holds a NUL.
  bool String(size_t index, char* out, size_t capacity);
  Bytes Uint8Array(size_t index);
  /// The items of an Int32Array; `null` or `undefined` gives {nullptr, 0} when `optional`.
  int32_t* Int32Array(size_t index, size_t* length, bool optional = false);
  double* Float64Array(size_t index, size_t minimum);
  /// Points `parts` at a Uint8Array or at the items of an array; their count, more than `most` when there are too many. JavaScript of the caller
  /// (getters of the array) runs before the first is looked at, so that it cannot take away what was found.
  uint32_t Parts(size_t index, iovec* parts, uint32_t most);
  bool IsFunction(size_t index);
  /// The object wrapped in `this`, which has the tag of its class.
  template <typename T>
  T* Self() {
    return static_cast<T*>(Wrapped(&T::kTag));
  }
  /// Throws a TypeError, unless something was thrown already.
  void Fail(const char* message);

 private:
  void FailArgument(size_t index, const char* expected);
  /// A number that is integral and from `minimum` to `maximum`.
  bool Integer(size_t index, double minimum, double maximum, double* out);
  bool Typed(size_t index, napi_typedarray_type expected, void** data, size_t* length);
  void* Wrapped(const napi_type_tag* tag);

  napi_env env_;
  size_t count_ = kMaximum;
  napi_value self_ = nullptr;
  napi_value values_[kMaximum];
  bool failed_ = false;
};

napi_value Number(napi_env env, int64_t value);

/// Makes `value` the exception unless one is pending; for calls of Node-API that cannot fail but by lack of memory.
napi_value Failed(napi_env env, const char* what);

/// A new object of a class of the addon around `pointer`, which `finalize` gets when the object is collected. nullptr with
/// an exception when it cannot be made: `pointer` is the caller's then.
napi_value NewInstance(napi_env env, napi_ref classReference, const napi_type_tag* tag, void* pointer,
                       napi_finalize finalize);

/// Defines a class for NewInstance(); nullptr with an exception.
napi_ref DefineClass(napi_env env, const char* name, const napi_property_descriptor* members, size_t count);

/// For references that are certainly there.
void DeleteReference(napi_env env, napi_ref reference);

/// The value of a system call, or the negative of errno when it is negative.
napi_value Result(napi_env env, int64_t returned);

/// Adds a function `name` to `exports`.
void Export(napi_env env, napi_value exports, const char* name, napi_callback function);

// Each file registers what it exports.
void InitAsync(napi_env env, napi_value exports);
void InitCounted(napi_env env, napi_value exports);
void InitCrc32c(napi_env env, napi_value exports);
void InitEvent(napi_env env, napi_value exports);
void InitFile(napi_env env, napi_value exports);
void InitMemory(napi_env env, napi_value exports, AddonData* data);
void InitPath(napi_env env, napi_value exports);
void InitOutput(napi_env env, napi_value exports);
void InitPoll(napi_env env, napi_value exports, AddonData* data);
void InitSocket(napi_env env, napi_value exports);
void InitVfio(napi_env env, napi_value exports);

/// Address and length of what a Mapping object maps; nullptr, without an exception, when `value` is none or unmapped.
uint8_t* MappedMemory(napi_env env, napi_value value, uint64_t* length);

/// Keeps the range that `bytes` lie in mapped for as long as it lives; nullptr when they lie in none. To be dropped on the
/// thread of `env`.
using RangeHold = std::shared_ptr<Range>;
RangeHold HoldRangeAt(napi_env env, const uint8_t* bytes, size_t length);

/// Copies every fd of every SCM_RIGHTS message to `out`, after their count and whether some were lost; `capacity` is that of
/// `out`. Those that do not fit are closed and count as lost.
void TakeFds(msghdr* message, int32_t* out, size_t capacity);

/// Starts closing every poller of an environment that ends; the last one to close removes the cleanup hook.
void CloseAllPollers(AddonData* data);

}  // namespace devstate
