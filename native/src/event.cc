// SPDX-License-Identifier: Apache-2.0
// Event counters (eventfd(2)): how interrupts reach a VMM.
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>

#include "support.h"
#include "unique-fd.h"

namespace devstate {
namespace {

/// eventfdCreate(initial) → fd, non-blocking
Napi::Value Create(const Napi::CallbackInfo& info) {
  Args args(info);
  uint32_t initial = args.Unsigned(0);
  return Give(info.Env(), UniqueFd(eventfd(initial, EFD_CLOEXEC | EFD_NONBLOCK)));
}

/// eventfdSignal(fd) → 0; -EAGAIN when the counter is full, that is, signalled already.
/// The fd is a peer's and may be a blocking one, so it is asked first whether it would block.
Napi::Value Signal(const Napi::CallbackInfo& info) {
  Args args(info);
  int fd = args.Fd(0);
  pollfd ready{fd, POLLOUT, 0};
  if (poll(&ready, 1, 0) < 0) return Result(info.Env(), -1);
  if ((ready.revents & POLLNVAL) != 0) return Number(info.Env(), -EBADF);
  if ((ready.revents & POLLOUT) == 0) return Number(info.Env(), -EAGAIN);
  return Result(info.Env(), eventfd_write(fd, 1));
}

/// eventfdRead(fd) → the counter, which becomes 0 (at most 2^53 - 1 is returned); -EAGAIN when it is 0.
Napi::Value Read(const Napi::CallbackInfo& info) {
  Args args(info);
  int fd = args.Fd(0);
  pollfd ready{fd, POLLIN, 0};
  if (poll(&ready, 1, 0) < 0) return Result(info.Env(), -1);
  if ((ready.revents & POLLNVAL) != 0) return Number(info.Env(), -EBADF);
  if ((ready.revents & POLLIN) == 0) return Number(info.Env(), -EAGAIN);
  eventfd_t value = 0;
  if (eventfd_read(fd, &value) != 0) return Result(info.Env(), -1);
  constexpr eventfd_t kMaxSafeInteger = (eventfd_t{1} << 53) - 1;
  return Number(info.Env(), static_cast<int64_t>(value < kMaxSafeInteger ? value : kMaxSafeInteger));
}

}  // namespace

void InitEvent(Napi::Object exports) {
  Export<Create>(exports, "eventfdCreate");
  Export<Signal>(exports, "eventfdSignal");
  Export<Read>(exports, "eventfdRead");
}

}  // namespace devstate
