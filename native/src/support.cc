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
  if (napi_get_instance_data(env, &data) != napi_ok || data == nullptr) {
    napi_fatal_error("devstate", NAPI_AUTO_LENGTH, "the addon has no data", NAPI_AUTO_LENGTH);
  }
  return static_cast<AddonData*>(data);
}

Arguments::Arguments(napi_env env, napi_callback_info info) : env_(env) {
  if (napi_get_cb_info(env, info, &count_, values_, &self_, nullptr) != napi_ok) {
    count_ = 0;
    Fail("the arguments cannot be read");
  }
  if (count_ > kMaximum) count_ = kMaximum;
}

void Arguments::Fail(const char* message) {
  if (failed_) return;
  failed_ = true;
  bool pending = false;
  if (napi_is_exception_pending(env_, &pending) == napi_ok && pending) return;
  if (napi_throw_type_error(env_, "ERR_INVALID_ARG_TYPE", message) != napi_ok) {
    napi_fatal_error("devstate", NAPI_AUTO_LENGTH, message, NAPI_AUTO_LENGTH);
  }
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

bool Arguments::Integer(size_t index, double minimum, double maximum, double* out) {
  double value = 0;
  // Comparisons with NaN are false. -0 is what a computation with a sign left over gives, and would be file 0.
  if (index >= count_ || napi_get_value_double(env_, values_[index], &value) != napi_ok ||
      !(value >= minimum && value <= maximum) || value != std::floor(value) || (value == 0 && std::signbit(value))) {
    return false;
  }
  *out = value;
  return true;
}

int32_t Arguments::Int(size_t index, int32_t minimum, int32_t maximum) {
  double value = 0;
  if (Integer(index, minimum, maximum, &value)) return static_cast<int32_t>(value);
  char expected[64];
  snprintf(expected, sizeof expected, "an integer from %d to %d", minimum, maximum);
  FailArgument(index, expected);
  return minimum > 0 ? minimum : 0;
}

uint32_t Arguments::Unsigned(size_t index) {
  double value = 0;
  if (!Integer(index, 0, UINT32_MAX, &value)) FailArgument(index, "an unsigned integer of 32 bits");
  return static_cast<uint32_t>(value);
}

uint64_t Arguments::Size(size_t index) {
  double value = 0;
  if (!Integer(index, 0, kMaxSafeInteger, &value)) FailArgument(index, "a non-negative safe integer");
  return static_cast<uint64_t>(value);
}

bool Arguments::String(size_t index, char* out, size_t capacity) {
  out[0] = '\0';
  size_t length = 0;
  if (index >= count_ || napi_get_value_string_utf8(env_, values_[index], nullptr, 0, &length) != napi_ok) {
    FailArgument(index, "a string");
    return false;
  }
  if (length >= capacity) return false;
  if (napi_get_value_string_utf8(env_, values_[index], out, capacity, &length) != napi_ok) {
    FailArgument(index, "a string");
    return false;
  }
  return strlen(out) == length;
}

bool Arguments::Typed(size_t index, napi_typedarray_type expected, void** data, size_t* length) {
  napi_typedarray_type type = napi_int8_array;
  *data = nullptr;
  *length = 0;
  if (index >= count_ ||
      napi_get_typedarray_info(env_, values_[index], &type, length, data, nullptr, nullptr) != napi_ok ||
      type != expected || (*length > 0 && *data == nullptr)) {
    *length = 0;
    return false;
  }
  return true;
}

Bytes Arguments::Uint8Array(size_t index) {
  Bytes bytes;
  void* data = nullptr;
  if (!Typed(index, napi_uint8_array, &data, &bytes.length)) FailArgument(index, "a Uint8Array");
  bytes.data = static_cast<uint8_t*>(data);
  return bytes;
}

int32_t* Arguments::Int32Array(size_t index, size_t* length, bool optional) {
  *length = 0;
  if (optional) {
    napi_valuetype kind = napi_undefined;
    if (index < count_ && napi_typeof(env_, values_[index], &kind) != napi_ok) kind = napi_undefined;
    if (kind == napi_undefined || kind == napi_null) return nullptr;
  }
  void* data = nullptr;
  if (!Typed(index, napi_int32_array, &data, length)) {
    FailArgument(index, "an Int32Array");
    return nullptr;
  }
  return static_cast<int32_t*>(data);
}

double* Arguments::Float64Array(size_t index, size_t minimum) {
  size_t length = 0;
  void* data = nullptr;
  if (!Typed(index, napi_float64_array, &data, &length) || length < minimum) {
    FailArgument(index, "a Float64Array that is long enough");
    return nullptr;
  }
  return static_cast<double*>(data);
}

uint32_t Arguments::Parts(size_t index, iovec* parts, uint32_t most) {
  constexpr const char* kExpected = "a Uint8Array or an array of them";
  napi_value one = value(index);
  napi_value items[kMaxParts];
  bool isArray = false;
  uint32_t count = 1;
  if (one == nullptr || napi_is_array(env_, one, &isArray) != napi_ok ||
      (isArray && napi_get_array_length(env_, one, &count) != napi_ok)) {
    FailArgument(index, kExpected);
    return 0;
  }
  if (count > most || count > kMaxParts) return most + 1;
  items[0] = one;
  for (uint32_t i = 0; isArray && i < count; i++) {
    if (napi_get_element(env_, one, i, &items[i]) != napi_ok) {
      FailArgument(index, kExpected);
      return 0;
    }
  }
  for (uint32_t i = 0; i < count; i++) {
    napi_typedarray_type type = napi_int8_array;
    size_t length = 0;
    void* data = nullptr;
    if (napi_get_typedarray_info(env_, items[i], &type, &length, &data, nullptr, nullptr) != napi_ok ||
        type != napi_uint8_array || (length > 0 && data == nullptr)) {
      FailArgument(index, kExpected);
      return 0;
    }
    parts[i] = {data, length};
  }
  return count;
}

void* Arguments::Wrapped(const napi_type_tag* tag) {
  void* pointer = nullptr;
  bool isOurs = false;
  napi_valuetype kind = napi_undefined;
  if (napi_typeof(env_, self_, &kind) != napi_ok || kind != napi_object ||
      napi_check_object_type_tag(env_, self_, tag, &isOurs) != napi_ok || !isOurs ||
      napi_unwrap(env_, self_, &pointer) != napi_ok || pointer == nullptr) {
    Fail("this is not an object that the addon made");
    return nullptr;
  }
  return pointer;
}

bool Arguments::IsFunction(size_t index) {
  napi_valuetype kind = napi_undefined;
  if (index < count_ && napi_typeof(env_, values_[index], &kind) == napi_ok && kind == napi_function) return true;
  FailArgument(index, "a function");
  return false;
}

napi_value Failed(napi_env env, const char* what) {
  bool pending = false;
  if (napi_is_exception_pending(env, &pending) == napi_ok && !pending) {
    if (napi_throw_error(env, "ERR_OPERATION_FAILED", what) != napi_ok) {
      napi_fatal_error("devstate", NAPI_AUTO_LENGTH, what, NAPI_AUTO_LENGTH);
    }
  }
  return nullptr;
}

napi_value NewInstance(napi_env env, napi_ref classReference, const napi_type_tag* tag, void* pointer,
                       napi_finalize finalize) {
  napi_value constructor = nullptr;
  napi_value instance = nullptr;
  if (napi_get_reference_value(env, classReference, &constructor) != napi_ok || constructor == nullptr ||
      napi_new_instance(env, constructor, 0, nullptr, &instance) != napi_ok ||
      napi_type_tag_object(env, instance, tag) != napi_ok ||
      napi_wrap(env, instance, pointer, finalize, nullptr, nullptr) != napi_ok) {
    return Failed(env, "an object cannot be made");
  }
  return instance;
}

napi_ref DefineClass(napi_env env, const char* name, const napi_property_descriptor* members, size_t count) {
  // An object that JavaScript makes has neither tag nor pointer: every call on it is a TypeError.
  auto construct = [](napi_env inside, napi_callback_info info) { return Arguments(inside, info).self(); };
  napi_value constructor = nullptr;
  napi_ref reference = nullptr;
  if (napi_define_class(env, name, NAPI_AUTO_LENGTH, construct, nullptr, count, members, &constructor) != napi_ok ||
      napi_create_reference(env, constructor, 1, &reference) != napi_ok) {
    Failed(env, "a class cannot be defined");
    return nullptr;
  }
  return reference;
}

void DeleteReference(napi_env env, napi_ref reference) {
  if (napi_delete_reference(env, reference) != napi_ok) Failed(env, "a reference cannot be deleted");
}

napi_value Number(napi_env env, int64_t value) {
  napi_value out = nullptr;
  napi_status status = value >= INT32_MIN && value <= INT32_MAX
                           ? napi_create_int32(env, static_cast<int32_t>(value), &out)
                           : napi_create_int64(env, value, &out);
  return status == napi_ok ? out : Failed(env, "a number cannot be made");
}

napi_value Result(napi_env env, int64_t returned) { return Number(env, returned < 0 ? -errno : returned); }

void Export(napi_env env, napi_value exports, const char* name, napi_callback function) {
  napi_value value = nullptr;
  if (napi_create_function(env, name, NAPI_AUTO_LENGTH, function, nullptr, &value) != napi_ok ||
      napi_set_named_property(env, exports, name, value) != napi_ok) {
    Failed(env, "a call cannot be exported");
  }
}

}  // namespace devstate
