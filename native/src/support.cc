// SPDX-License-Identifier: Apache-2.0
#include "support.h"

#include <cmath>
#include <cstdio>
#include <cstring>

namespace devstate {

namespace {
constexpr double kMaxSafeInteger = 9007199254740991.0;
}

void ThrowTypeError(Napi::Env env, const char* message) {
  auto error = Napi::TypeError::New(env, message);
  error.Set("code", "ERR_INVALID_ARG_TYPE");
  throw error;
}

void Args::Fail(size_t index, const char* expected) const {
  char message[96];
  snprintf(message, sizeof message, "argument %zu must be %s", index + 1, expected);
  ThrowTypeError(info_.Env(), message);
}

bool Args::Integer(size_t index, double minimum, double maximum, double* out) const {
  double value = 0;
  // Comparisons with NaN are false. -0 is what a computation with a sign left over gives, and would be file 0.
  if (napi_get_value_double(info_.Env(), info_[index], &value) != napi_ok || !(value >= minimum && value <= maximum) ||
      value != std::floor(value) || (value == 0 && std::signbit(value))) {
    return false;
  }
  *out = value;
  return true;
}

int32_t Args::Int(size_t index, int32_t minimum, int32_t maximum) const {
  double value = 0;
  if (Integer(index, minimum, maximum, &value)) return static_cast<int32_t>(value);
  char expected[64];
  snprintf(expected, sizeof expected, "an integer from %d to %d", minimum, maximum);
  Fail(index, expected);
}

uint32_t Args::Unsigned(size_t index) const {
  double value = 0;
  if (!Integer(index, 0, UINT32_MAX, &value)) Fail(index, "an unsigned integer of 32 bits");
  return static_cast<uint32_t>(value);
}

uint64_t Args::Size(size_t index) const {
  double value = 0;
  if (!Integer(index, 0, kMaxSafeInteger, &value)) Fail(index, "a non-negative safe integer");
  return static_cast<uint64_t>(value);
}

bool Args::String(size_t index, char* out, size_t capacity) const {
  Napi::Env env = info_.Env();
  Napi::Value value = info_[index];
  size_t length = 0;
  if (napi_get_value_string_utf8(env, value, nullptr, 0, &length) != napi_ok) Fail(index, "a string");
  if (length >= capacity) return false;
  Check(env, napi_get_value_string_utf8(env, value, out, capacity, &length));
  return strlen(out) == length;
}

namespace {

/// False for what is not an array of this type, or has lost its memory.
bool ArrayOf(Napi::Env env, napi_value value, napi_typedarray_type expected, void** data, size_t* length) {
  napi_typedarray_type type = napi_int8_array;
  return napi_get_typedarray_info(env, value, &type, length, data, nullptr, nullptr) == napi_ok && type == expected &&
         (*length == 0 || *data != nullptr);
}

}  // namespace

bool Args::Typed(size_t index, napi_typedarray_type expected, void** data, size_t* length) const {
  return ArrayOf(info_.Env(), info_[index], expected, data, length);
}

Bytes Args::Uint8Array(size_t index) const {
  Bytes bytes;
  void* data = nullptr;
  if (!Typed(index, napi_uint8_array, &data, &bytes.length)) Fail(index, "a Uint8Array");
  bytes.data = static_cast<uint8_t*>(data);
  return bytes;
}

int32_t* Args::Int32Array(size_t index, size_t* length, bool optional) const {
  *length = 0;
  if (optional) {
    napi_valuetype kind = info_[index].Type();
    if (kind == napi_undefined || kind == napi_null) return nullptr;
  }
  void* data = nullptr;
  if (!Typed(index, napi_int32_array, &data, length)) Fail(index, "an Int32Array");
  return static_cast<int32_t*>(data);
}

double* Args::Float64Array(size_t index, size_t minimum) const {
  size_t length = 0;
  void* data = nullptr;
  if (!Typed(index, napi_float64_array, &data, &length) || length < minimum) {
    Fail(index, "a Float64Array that is long enough");
  }
  return static_cast<double*>(data);
}

Napi::Function Args::Function(size_t index) const {
  Napi::Value value = info_[index];
  if (!value.IsFunction()) Fail(index, "a function");
  return value.As<Napi::Function>();
}

uint32_t Args::Parts(size_t index, iovec* parts, uint32_t most) const {
  constexpr const char* kExpected = "a Uint8Array or an array of them";
  Napi::Env env = info_.Env();
  napi_value one = info_[index];
  napi_value items[kMaxParts];
  bool isArray = false;
  uint32_t count = 1;
  Check(env, napi_is_array(env, one, &isArray));
  if (isArray) Check(env, napi_get_array_length(env, one, &count));
  if (count > most || count > kMaxParts) return most + 1;
  items[0] = one;
  for (uint32_t i = 0; isArray && i < count; i++) Check(env, napi_get_element(env, one, i, &items[i]));
  for (uint32_t i = 0; i < count; i++) {
    if (!ArrayOf(env, items[i], napi_uint8_array, &parts[i].iov_base, &parts[i].iov_len)) Fail(index, kExpected);
  }
  return count;
}

Napi::Value Number(Napi::Env env, int64_t value) {
  napi_value out = nullptr;
  Check(env, value >= INT32_MIN && value <= INT32_MAX ? napi_create_int32(env, static_cast<int32_t>(value), &out)
                                                      : napi_create_int64(env, value, &out));
  return {env, out};
}

}  // namespace devstate
