// SPDX-License-Identifier: Apache-2.0
// What every file of the addon shares: reading arguments, making results, per-environment data.
//
// Rules of the addon: a call checks its arguments, makes one system call and returns its value or the negative errno.
// A wrong argument type is a TypeError, an errno never is. Raw Node-API is used throughout because the calls are on the
// path of every device register access.
#pragma once

#include <node_api.h>
#include <sys/socket.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>

namespace devstate {

struct Memory;
struct Poller;

/// What is mapped, by address. Mappings share it, because some are collected after the environment's data.
using MappedRanges = std::map<uintptr_t, Memory*>;

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

  Arguments(napi_env env, napi_callback_info info);

  bool failed() const { return failed_; }
  napi_value self() const { return self_; }
  napi_value value(size_t index) const { return index < count_ ? values_[index] : nullptr; }

  /// Whether the argument was given and is not undefined.
  bool Has(size_t index);
  int32_t Int(size_t index);
  uint32_t Unsigned(size_t index);
  /// A non-negative safe integer: offsets, lengths, addresses.
  uint64_t Size(size_t index);
  /// Copies the string with its NUL. False, without an exception, when it does not fit or holds a NUL.
  bool String(size_t index, char* out, size_t capacity);
  Bytes Uint8Array(size_t index);
  /// The items of an Int32Array; `null` or `undefined` gives {nullptr, 0} when `optional`.
  int32_t* Int32Array(size_t index, size_t* length, bool optional = false);
  double* Float64Array(size_t index, size_t minimum);
  bool IsFunction(size_t index);
  /// The object wrapped in `this`.
  template <typename T>
  T* Self() {
    void* pointer = nullptr;
    if (napi_unwrap(env_, self_, &pointer) != napi_ok || pointer == nullptr) {
      Fail("this is not an object that the addon made");
      return nullptr;
    }
    return static_cast<T*>(pointer);
  }
  void Fail(const char* message);

 private:
  void FailArgument(size_t index, const char* expected);

  napi_env env_;
  size_t count_ = kMaximum;
  napi_value self_ = nullptr;
  napi_value values_[kMaximum];
  bool failed_ = false;
};

napi_value Number(napi_env env, int64_t value);

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

/// Keeps the mapping that `bytes` lie in mapped until UnpinMemory; nullptr when they lie in none.
Memory* PinMemoryAt(napi_env env, const uint8_t* bytes, size_t length);
void UnpinMemory(Memory* memory);

/// Copies every fd of every SCM_RIGHTS message to `out`, after their count and whether some were lost; `capacity` is that of
/// `out`. Those that do not fit are closed and count as lost.
void TakeFds(msghdr* message, int32_t* out, size_t capacity);

/// Starts closing every poller of an environment that ends; the last one to close removes the cleanup hook.
void CloseAllPollers(AddonData* data);

}  // namespace devstate
