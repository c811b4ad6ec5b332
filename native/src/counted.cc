// SPDX-License-Identifier: Apache-2.0
// Transfers that the kernel itself counts (recvmmsg(2), sendmmsg(2)).
//
// The two calls write how many bytes they moved to the caller's memory, msg_len, before they return. A call that does not
// wait is not cut short by SIGKILL: the signal is acted on when the call returns to user mode. So where the mmsghdr and
// the buffer are in memory that outlives the process, the next process knows what the last call did.
#include <linux/kcmp.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>

#include "support.h"

namespace devstate {
namespace {

constexpr size_t kMaxFds = 253;

static_assert(sizeof(mmsghdr) == 64 && offsetof(mmsghdr, msg_len) == 56, "the layout that JavaScript counts on");

/// The mmsghdr at memory[headerAt] for `length` bytes at memory[bufferAt]. msg_len is left alone: it is the caller's.
mmsghdr* Header(Bytes memory, uint64_t headerAt, uint64_t bufferAt, uint64_t length, iovec* part) {
  if (headerAt > memory.length || memory.length - headerAt < sizeof(mmsghdr) || bufferAt > memory.length ||
      length > memory.length - bufferAt || reinterpret_cast<uintptr_t>(memory.data + headerAt) % alignof(mmsghdr) != 0) {
    return nullptr;
  }
  auto* header = reinterpret_cast<mmsghdr*>(memory.data + headerAt);
  header->msg_hdr = msghdr{};
  *part = iovec{memory.data + bufferAt, length};
  header->msg_hdr.msg_iov = part;
  header->msg_hdr.msg_iovlen = 1;
  return header;
}

/// receiveCounted(fd, memory, headerAt, bufferAt, length, received | null) → bytes
Napi::Value ReceiveCounted(const Napi::CallbackInfo& info) {
  Args args(info);
  int fd = args.Fd(0);
  Bytes memory = args.Uint8Array(1);
  uint64_t headerAt = args.Size(2);
  uint64_t bufferAt = args.Size(3);
  uint64_t length = args.Size(4);
  size_t capacity = 0;
  int32_t* received = args.Int32Array(5, &capacity, true);
  iovec part;
  mmsghdr* header = Header(memory, headerAt, bufferAt, length, &part);
  if (header == nullptr || (received != nullptr && capacity < 2)) return Number(info.Env(), -EINVAL);
  alignas(cmsghdr) char control[CMSG_SPACE(kMaxFds * sizeof(int))];
  // Without room for them the kernel would close the fds itself, here.
  header->msg_hdr.msg_control = control;
  header->msg_hdr.msg_controllen = sizeof control;
  if (recvmmsg(fd, header, 1, MSG_DONTWAIT | MSG_CMSG_CLOEXEC, nullptr) < 0) return Result(info.Env(), -1);
  int32_t none[2];
  if (received != nullptr) TakeFds(&header->msg_hdr, received, capacity);
  else TakeFds(&header->msg_hdr, none, 2);
  return Number(info.Env(), header->msg_len);
}

/// sendCounted(fd, memory, headerAt, bufferAt, length) → bytes
Napi::Value SendCounted(const Napi::CallbackInfo& info) {
  Args args(info);
  int fd = args.Fd(0);
  Bytes memory = args.Uint8Array(1);
  uint64_t headerAt = args.Size(2);
  uint64_t bufferAt = args.Size(3);
  uint64_t length = args.Size(4);
  iovec part;
  mmsghdr* header = Header(memory, headerAt, bufferAt, length, &part);
  if (header == nullptr) return Number(info.Env(), -EINVAL);
  if (sendmmsg(fd, header, 1, MSG_DONTWAIT | MSG_NOSIGNAL) < 0) return Result(info.Env(), -1);
  return Number(info.Env(), header->msg_len);
}

/// sameFile(fd, other) → 1 when both are the same open file
Napi::Value SameFile(const Napi::CallbackInfo& info) {
  Args args(info);
  int fd = args.Fd(0);
  int other = args.Fd(1);
  pid_t self = getpid();
  auto order = syscall(SYS_kcmp, self, self, KCMP_FILE, fd, other);
  return order < 0 ? Result(info.Env(), -1) : Number(info.Env(), order == 0 ? 1 : 0);
}

}  // namespace

void InitCounted(Napi::Object exports) {
  Export<ReceiveCounted>(exports, "receiveCounted");
  Export<SendCounted>(exports, "sendCounted");
  Export<SameFile>(exports, "sameFile");
}

}  // namespace devstate
