// SPDX-License-Identifier: Apache-2.0
// Event counters (eventfd(2)): how interrupts reach a VMM.
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>

#include "support.h"

namespace devstate {
namespace {

/// eventfdCreate(initial) → fd, non-blocking
napi_value Create(napi_env env, napi_callback_info info) {
  Arguments args(env, info);
  uint32_t initial = args.Unsigned(0);
  if (args.failed()) return nullptr;
  return Result(env, eventfd(initial, EFD_CLOEXEC | EFD_NONBLOCK));
}

/// eventfdSignal(fd) → 0; -EAGAIN when the counter is full, that is, signalled already.
/// The fd is a peer's and may be a blocking one, so it is asked first whether it would block.
napi_value Signal(napi_env env, napi_callback_info info) {
  Arguments args(env, info);
  int fd = args.Fd(0);
  if (args.failed()) return nullptr;
  pollfd ready{fd, POLLOUT, 0};
  if (poll(&ready, 1, 0) < 0) return Result(env, -1);
  if ((ready.revents & POLLNVAL) != 0) return Number(env, -EBADF);
  if ((ready.revents & POLLOUT) == 0) return Number(env, -EAGAIN);
  return Result(env, eventfd_write(fd, 1));
}

/// eventfdRead(fd) → the counter, which becomes 0 (at most 2^53 - 1 is told); -EAGAIN when it is 0.
napi_value Read(napi_env env, napi_callback_info info) {
  Arguments args(env, info);
  int fd = args.Fd(0);
  if (args.failed()) return nullptr;
  pollfd ready{fd, POLLIN, 0};
  if (poll(&ready, 1, 0) < 0) return Result(env, -1);
  if ((ready.revents & POLLNVAL) != 0) return Number(env, -EBADF);
  if ((ready.revents & POLLIN) == 0) return Number(env, -EAGAIN);
  eventfd_t value = 0;
  if (eventfd_read(fd, &value) != 0) return Result(env, -1);
  constexpr eventfd_t kMaxSafeInteger = (eventfd_t{1} << 53) - 1;
  return Number(env, static_cast<int64_t>(value < kMaxSafeInteger ? value : kMaxSafeInteger));
}

}  // namespace

void InitEvent(napi_env env, napi_value exports) {
  Export(env, exports, "eventfdCreate", Create);
  Export(env, exports, "eventfdSignal", Signal);
  Export(env, exports, "eventfdRead", Read);
}

}  // namespace devstate
