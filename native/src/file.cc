// SPDX-License-Identifier: Apache-2.0
// File descriptors of any kind, and what image files need beyond Node's fs: locks, holes, reads that never wait.
#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cerrno>

#include "reaper.h"
#include "support.h"

namespace devstate {
namespace {

/// IOV_MAX of the kernel.
constexpr uint32_t kMaxParts = 1024;

/// close(fd) → 0
napi_value Close(napi_env env, napi_callback_info info) {
  Arguments args(env, info);
  int fd = args.Fd(0);
  if (args.failed()) return nullptr;
  // Linux has released the number even when close is interrupted.
  return close(fd) == 0 || errno == EINTR ? Number(env, 0) : Result(env, -1);
}

/// closeLater(fd, group) → 0; closed by another thread, which may block.
napi_value CloseFdLater(napi_env env, napi_callback_info info) {
  Arguments args(env, info);
  int fd = args.Fd(0);
  uint32_t group = args.Unsigned(1);
  if (args.failed()) return nullptr;
  CloseLater(fd, group);
  return Number(env, 0);
}

/// closing(group | undefined) → closes of that group, or of all, that have not returned
napi_value CountClosing(napi_env env, napi_callback_info info) {
  Arguments args(env, info);
  if (!args.Has(0)) return Number(env, ClosingOfAll());
  uint32_t group = args.Unsigned(0);
  if (args.failed()) return nullptr;
  return Number(env, Closing(group));
}

/// pidfdOpen(pid) → fd, close-on-exec; readable once the process has ended.
napi_value PidfdOpen(napi_env env, napi_callback_info info) {
  Arguments args(env, info);
  int pid = args.Int(0, 1);
  if (args.failed()) return nullptr;
  return Result(env, syscall(SYS_pidfd_open, pid, 0));
}

/// duplicate(fd) → fd, close-on-exec
napi_value Duplicate(napi_env env, napi_callback_info info) {
  Arguments args(env, info);
  int fd = args.Fd(0);
  if (args.failed()) return nullptr;
  return Result(env, fcntl(fd, F_DUPFD_CLOEXEC, 3));
}

/// stat(fd, out: Float64Array(4)) → 0; out is size, mode, device, inode.
napi_value Stat(napi_env env, napi_callback_info info) {
  Arguments args(env, info);
  int fd = args.Fd(0);
  double* out = args.Float64Array(1, 4);
  if (args.failed()) return nullptr;
  struct stat info_;
  if (fstat(fd, &info_) != 0) return Result(env, -1);
  out[0] = static_cast<double>(info_.st_size);
  out[1] = static_cast<double>(info_.st_mode);
  out[2] = static_cast<double>(info_.st_dev);
  out[3] = static_cast<double>(info_.st_ino);
  return Number(env, 0);
}

/// poll(fd, events, timeoutMs) → the events that hold (poll(2) bits), 0 after the timeout. Blocks the thread.
napi_value Poll(napi_env env, napi_callback_info info) {
  Arguments args(env, info);
  int fd = args.Fd(0);
  int events = args.Int(1, 0, INT16_MAX);
  int timeout = args.Int(2, 0);
  if (args.failed()) return nullptr;
  pollfd ready{fd, static_cast<short>(events), 0};
  if (poll(&ready, 1, timeout) < 0) return Result(env, -1);
  return Number(env, ready.revents);
}

/// truncate(fd, length) → 0
napi_value Truncate(napi_env env, napi_callback_info info) {
  Arguments args(env, info);
  int fd = args.Fd(0);
  uint64_t length = args.Size(1);
  if (args.failed()) return nullptr;
  return Result(env, ftruncate(fd, static_cast<off_t>(length)));
}

/// addSeals(fd, seals) → 0
napi_value AddSeals(napi_env env, napi_callback_info info) {
  Arguments args(env, info);
  int fd = args.Fd(0);
  int seals = args.Int(1, 0);
  if (args.failed()) return nullptr;
  return Result(env, fcntl(fd, F_ADD_SEALS, seals));
}

/// getSeals(fd) → seals; -EINVAL for a file that has none.
napi_value GetSeals(napi_env env, napi_callback_info info) {
  Arguments args(env, info);
  int fd = args.Fd(0);
  if (args.failed()) return nullptr;
  return Result(env, fcntl(fd, F_GET_SEALS));
}

struct flock LockOf(Arguments* args) {
  struct flock lock {};
  lock.l_type = static_cast<short>(args->Int(1, F_RDLCK, F_UNLCK));
  lock.l_whence = SEEK_SET;
  lock.l_start = static_cast<off_t>(args->Size(2));
  lock.l_len = static_cast<off_t>(args->Size(3));
  return lock;
}

/// setLock(fd, type, start, length) → 0; -EAGAIN when another open file holds it. Lock of the open file description.
napi_value SetLock(napi_env env, napi_callback_info info) {
  Arguments args(env, info);
  int fd = args.Fd(0);
  struct flock lock = LockOf(&args);
  if (args.failed()) return nullptr;
  return Result(env, fcntl(fd, F_OFD_SETLK, &lock));
}

/// testLock(fd, type, start, length) → F_UNLCK when setLock would succeed, else the type of the lock in the way.
napi_value TestLock(napi_env env, napi_callback_info info) {
  Arguments args(env, info);
  int fd = args.Fd(0);
  struct flock lock = LockOf(&args);
  if (args.failed()) return nullptr;
  if (fcntl(fd, F_OFD_GETLK, &lock) != 0) return Result(env, -1);
  return Number(env, lock.l_type);
}

/// allocate(fd, mode, offset, length) → 0; mode is that of fallocate(2).
napi_value Allocate(napi_env env, napi_callback_info info) {
  Arguments args(env, info);
  int fd = args.Fd(0);
  int mode = args.Int(1, 0);
  uint64_t offset = args.Size(2);
  uint64_t length = args.Size(3);
  if (args.failed()) return nullptr;
  return Result(env, fallocate(fd, mode, static_cast<off_t>(offset), static_cast<off_t>(length)));
}

using VectorCall = ssize_t (*)(int, const iovec*, int, off_t, int);

/// Shared by the two below. Parts may be one Uint8Array or an array of at most 1024.
napi_value Vector(napi_env env, napi_callback_info info, VectorCall call) {
  Arguments args(env, info);
  int fd = args.Fd(0);
  uint64_t position = args.Size(2);
  if (args.failed()) return nullptr;
  iovec parts[kMaxParts];
  uint32_t count = args.Parts(1, parts, kMaxParts);
  if (args.failed()) return nullptr;
  if (count > kMaxParts) return Number(env, -EINVAL);
  return Result(env, call(fd, parts, static_cast<int>(count), static_cast<off_t>(position), RWF_NOWAIT));
}

/// readNow(fd, parts, position) → bytes read; -EAGAIN when it would have to wait for the disk.
napi_value ReadNow(napi_env env, napi_callback_info info) { return Vector(env, info, preadv2); }

/// writeNow(fd, parts, position) → bytes written; -EAGAIN when it would wait, -EOPNOTSUPP where the file system cannot tell.
napi_value WriteNow(napi_env env, napi_callback_info info) { return Vector(env, info, pwritev2); }

}  // namespace

void InitFile(napi_env env, napi_value exports) {
  Export(env, exports, "close", Close);
  Export(env, exports, "closeLater", CloseFdLater);
  Export(env, exports, "closing", CountClosing);
  Export(env, exports, "duplicate", Duplicate);
  Export(env, exports, "pidfdOpen", PidfdOpen);
  Export(env, exports, "stat", Stat);
  Export(env, exports, "poll", Poll);
  Export(env, exports, "truncate", Truncate);
  Export(env, exports, "addSeals", AddSeals);
  Export(env, exports, "getSeals", GetSeals);
  Export(env, exports, "setLock", SetLock);
  Export(env, exports, "testLock", TestLock);
  Export(env, exports, "allocate", Allocate);
  Export(env, exports, "readNow", ReadNow);
  Export(env, exports, "writeNow", WriteNow);
}

}  // namespace devstate
