// SPDX-License-Identifier: Apache-2.0
// ioctl(2) on files of the kernel's VFIO and iommufd, and nothing else: their requests share one type character. What a
// request's structure holds is TypeScript's business; here it is made sure that the kernel stays within it.
#include <fcntl.h>
#include <linux/ioctl.h>
#include <sys/ioctl.h>

#include <cerrno>
#include <cstring>

#include "support.h"
#include "unique-fd.h"

namespace devstate {
namespace {

/// VFIO_TYPE and IOMMUFD_TYPE.
constexpr unsigned kType = ';';
constexpr uint32_t kGroupSetContainer = _IO(kType, 104);
constexpr uint32_t kGroupGetDeviceFd = _IO(kType, 106);
/// Longest name of a device, with its NUL.
constexpr size_t kMaxName = 256;

bool IsVfio(uint32_t request) { return _IOC_TYPE(request) == kType && _IOC_DIR(request) == _IOC_NONE; }

/// The first field of a structure is its length. False when that claims more than there is.
bool LengthHolds(const Bytes& bytes) {
  uint32_t claimed = 0;
  if (bytes.length < sizeof claimed) return false;
  memcpy(&claimed, bytes.data, sizeof claimed);
  return claimed >= sizeof claimed && claimed <= bytes.length;
}

/// vfioCall(fd, request, value) → what the request returns; for requests without a structure.
Napi::Value Call(const Napi::CallbackInfo& info) {
  Args args(info);
  int fd = args.Fd(0);
  uint32_t request = args.Unsigned(1);
  uint32_t value = args.Unsigned(2);
  if (!IsVfio(request)) return Number(info.Env(), -EINVAL);
  return Result(info.Env(), ioctl(fd, request, static_cast<unsigned long>(value)));
}

/// vfioCallStruct(fd, request, bytes): the kernel reads and writes `bytes`, whose first field is their length.
Napi::Value CallStruct(const Napi::CallbackInfo& info) {
  Args args(info);
  int fd = args.Fd(0);
  uint32_t request = args.Unsigned(1);
  Bytes bytes = args.Uint8Array(2);
  if (!IsVfio(request) || !LengthHolds(bytes)) return Number(info.Env(), -EINVAL);
  return Result(info.Env(), ioctl(fd, request, bytes.data));
}

/// vfioCallMemory(fd, request, bytes, pointerAt, lengthAt, memory, offset, length): as vfioCallStruct; before, the address
/// of `memory` (a Mapping or a Uint8Array) from `offset` on is put at `bytes[pointerAt]`, and `length` at
/// `bytes[lengthAt]` unless that is -1: so the two cannot contradict each other.
Napi::Value CallMemory(const Napi::CallbackInfo& info) {
  Args args(info);
  int fd = args.Fd(0);
  uint32_t request = args.Unsigned(1);
  Bytes bytes = args.Uint8Array(2);
  uint64_t pointerAt = args.Size(3);
  int lengthAt = args.Int(4, -1);
  uint64_t offset = args.Size(6);
  uint64_t length = args.Size(7);
  uint64_t available = 0;
  uint8_t* memory = MappedMemory(info[5], &available);
  if (memory == nullptr) {
    Bytes plain = args.Uint8Array(5);
      memory = plain.data;
    available = plain.length;
  }
  if (!IsVfio(request) || !LengthHolds(bytes) || offset > available || length > available - offset ||
      bytes.length < sizeof(uint64_t) || pointerAt > bytes.length - sizeof(uint64_t) ||
      (lengthAt >= 0 && static_cast<size_t>(lengthAt) > bytes.length - sizeof(uint64_t))) {
    return Number(info.Env(), -EINVAL);
  }
  uint64_t address = reinterpret_cast<uint64_t>(memory) + offset;
  memcpy(bytes.data + pointerAt, &address, sizeof address);
  if (lengthAt >= 0) memcpy(bytes.data + lengthAt, &length, sizeof length);
  return Result(info.Env(), ioctl(fd, request, bytes.data));
}

/// vfioSetContainer(group, container) → 0
Napi::Value SetContainer(const Napi::CallbackInfo& info) {
  Args args(info);
  int group = args.Fd(0);
  int32_t container = args.Fd(1);
  return Result(info.Env(), ioctl(group, kGroupSetContainer, &container));
}

/// vfioGetDevice(group, name) → the device's fd, close-on-exec
Napi::Value GetDevice(const Napi::CallbackInfo& info) {
  Args args(info);
  int group = args.Fd(0);
  char name[kMaxName];
  bool fits = args.String(1, name, sizeof name);
  if (!fits) return Number(info.Env(), -EINVAL);
  return Give(info.Env(), UniqueFd(ioctl(group, kGroupGetDeviceFd, name)));
}

}  // namespace

void InitVfio(Napi::Object exports) {
  Export<Call>(exports, "vfioCall");
  Export<CallStruct>(exports, "vfioCallStruct");
  Export<CallMemory>(exports, "vfioCallMemory");
  Export<SetContainer>(exports, "vfioSetContainer");
  Export<GetDevice>(exports, "vfioGetDevice");
}

}  // namespace devstate
