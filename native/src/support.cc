// SPDX-License-Identifier: Apache-2.0
#include "support.h"

#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>

namespace devstate {

namespace {
constexpr double kMaxSafeInteger = 9007199254740991.0;
}

AddonData* GetAddonData(napi_env env) {
  void* data = nullptr;
  napi_get_instance_data(env, &data);
  return static_cast<AddonData*>(data);
}

Arguments::Arguments(napi_env env, napi_callback_info info) : env_(env) {
  napi_get_cb_info(env, info, &count_, values_, &self_, nullptr);
  if (count_ > kMaximum) count_ = kMaximum;
}

void Arguments::Fail(const char* message) {
  if (failed_) return;
  failed_ = true;
  napi_throw_type_error(env_, "ERR_INVALID_ARG_TYPE", message);
}

void Arguments::FailArgument(size_t index, const char* expected) {
  char message[96];
  snprintf(message, sizeof message, "argument %zu must be %s", index + 1, expected);
  Fail(message);
}

bool Arguments::Has(size_t index) {
  napi_valuetype kind = napi_undefined;
  return index < count_ && napi_typeof(env_, values_[index], &kind) == napi_ok && kind != napi_undefined;
}

int32_t Arguments::Int(size_t index) {
  int32_t out = 0;
  if (index >= count_ || napi_get_value_int32(env_, values_[index], &out) != napi_ok) FailArgument(index, "an integer");
  return out;
}

uint32_t Arguments::Unsigned(size_t index) {
  uint32_t out = 0;
  if (index >= count_ || napi_get_value_uint32(env_, values_[index], &out) != napi_ok) {
    FailArgument(index, "an unsigned integer");
  }
  return out;
}

uint64_t Arguments::Size(size_t index) {
  double out = -1;
  if (index >= count_ || napi_get_value_double(env_, values_[index], &out) != napi_ok ||
      !(out >= 0 && out <= kMaxSafeInteger) || out != std::floor(out)) {
    FailArgument(index, "a non-negative safe integer");
    return 0;
  }
  return static_cast<uint64_t>(out);
}

bool Arguments::String(size_t index, char* out, size_t capacity) {
  size_t length = 0;
  if (index >= count_ || napi_get_value_string_utf8(env_, values_[index], nullptr, 0, &length) != napi_ok) {
    FailArgument(index, "a string");
    return false;
  }
  if (length >= capacity) return false;
  napi_get_value_string_utf8(env_, values_[index], out, capacity, &length);
  return strlen(out) == length;
}

Bytes Arguments::Uint8Array(size_t index) {
  Bytes bytes;
  napi_typedarray_type type = napi_int8_array;
  void* data = nullptr;
  if (index >= count_ ||
      napi_get_typedarray_info(env_, values_[index], &type, &bytes.length, &data, nullptr, nullptr) != napi_ok ||
      type != napi_uint8_array) {
    FailArgument(index, "a Uint8Array");
    return Bytes{};
  }
  bytes.data = static_cast<uint8_t*>(data);
  return bytes;
}

int32_t* Arguments::Int32Array(size_t index, size_t* length, bool optional) {
  *length = 0;
  if (optional) {
    napi_valuetype kind = napi_undefined;
    if (index < count_) napi_typeof(env_, values_[index], &kind);
    if (kind == napi_undefined || kind == napi_null) return nullptr;
  }
  napi_typedarray_type type = napi_int8_array;
  void* data = nullptr;
  if (index >= count_ ||
      napi_get_typedarray_info(env_, values_[index], &type, length, &data, nullptr, nullptr) != napi_ok ||
      type != napi_int32_array) {
    *length = 0;
    FailArgument(index, "an Int32Array");
    return nullptr;
  }
  return static_cast<int32_t*>(data);
}

double* Arguments::Float64Array(size_t index, size_t minimum) {
  size_t length = 0;
  napi_typedarray_type type = napi_int8_array;
  void* data = nullptr;
  if (index >= count_ ||
      napi_get_typedarray_info(env_, values_[index], &type, &length, &data, nullptr, nullptr) != napi_ok ||
      type != napi_float64_array || length < minimum) {
    FailArgument(index, "a Float64Array that is long enough");
    return nullptr;
  }
  return static_cast<double*>(data);
}

bool Arguments::IsFunction(size_t index) {
  napi_valuetype kind = napi_undefined;
  if (index < count_) napi_typeof(env_, values_[index], &kind);
  if (kind == napi_function) return true;
  FailArgument(index, "a function");
  return false;
}

napi_value Number(napi_env env, int64_t value) {
  napi_value out = nullptr;
  if (value >= INT32_MIN && value <= INT32_MAX) {
    napi_create_int32(env, static_cast<int32_t>(value), &out);
  } else {
    napi_create_int64(env, value, &out);
  }
  return out;
}

napi_value Result(napi_env env, int64_t returned) { return Number(env, returned < 0 ? -errno : returned); }

void Export(napi_env env, napi_value exports, const char* name, napi_callback function) {
  napi_value value = nullptr;
  napi_create_function(env, name, NAPI_AUTO_LENGTH, function, nullptr, &value);
  napi_set_named_property(env, exports, name, value);
}

}  // namespace devstate
