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
#include "unique-fd.h"

namespace devstate {
namespace {

/// IOV_MAX of the kernel.
constexpr uint32_t kMaxParts = 1024;

/// close(fd) → 0
Napi::Value Close(const Napi::CallbackInfo& info) {
  Args args(info);
  int fd = args.Fd(0);
  // Linux has released the number even when close is interrupted.
  return close(fd) == 0 || errno == EINTR ? Number(info.Env(), 0) : Result(info.Env(), -1);
}

/// closeLater(fd, group) → 0; closed by another thread, which may block.
Napi::Value CloseFdLater(const Napi::CallbackInfo& info) {
  Args args(info);
  int fd = args.Fd(0);
  uint32_t group = args.Unsigned(1);
  CloseLater(fd, group);
  return Number(info.Env(), 0);
}

/// closing(group | undefined) → closes of that group, or of all, that have not returned
Napi::Value CountClosing(const Napi::CallbackInfo& info) {
  Args args(info);
  if (!args.Has(0)) return Number(info.Env(), ClosingOfAll());
  uint32_t group = args.Unsigned(0);
  return Number(info.Env(), Closing(group));
}

/// pidfdOpen(pid) → fd, close-on-exec; readable once the process has ended.
Napi::Value PidfdOpen(const Napi::CallbackInfo& info) {
  Args args(info);
  int pid = args.Int(0, 1);
  return Give(info.Env(), UniqueFd(static_cast<int>(syscall(SYS_pidfd_open, pid, 0))));
}

/// duplicate(fd) → fd, close-on-exec
Napi::Value Duplicate(const Napi::CallbackInfo& info) {
  Args args(info);
  int fd = args.Fd(0);
  return Give(info.Env(), UniqueFd(fcntl(fd, F_DUPFD_CLOEXEC, 3)));
}

/// stat(fd, out: Float64Array(4)) → 0; out is size, mode, device, inode.
Napi::Value Stat(const Napi::CallbackInfo& info) {
  Args args(info);
  int fd = args.Fd(0);
  double* out = args.Float64Array(1, 4);
  struct stat info_;
  if (fstat(fd, &info_) != 0) return Result(info.Env(), -1);
  out[0] = static_cast<double>(info_.st_size);
  out[1] = static_cast<double>(info_.st_mode);
  out[2] = static_cast<double>(info_.st_dev);
  out[3] = static_cast<double>(info_.st_ino);
  return Number(info.Env(), 0);
}

/// poll(fd, events, timeoutMs) → the events that hold (poll(2) bits), 0 after the timeout. Blocks the thread.
Napi::Value Poll(const Napi::CallbackInfo& info) {
  Args args(info);
  int fd = args.Fd(0);
  int events = args.Int(1, 0, INT16_MAX);
  int timeout = args.Int(2, 0);
  pollfd ready{fd, static_cast<short>(events), 0};
  if (poll(&ready, 1, timeout) < 0) return Result(info.Env(), -1);
  return Number(info.Env(), ready.revents);
}

/// truncate(fd, length) → 0
Napi::Value Truncate(const Napi::CallbackInfo& info) {
  Args args(info);
  int fd = args.Fd(0);
  uint64_t length = args.Size(1);
  return Result(info.Env(), ftruncate(fd, static_cast<off_t>(length)));
}

/// addSeals(fd, seals) → 0
Napi::Value AddSeals(const Napi::CallbackInfo& info) {
  Args args(info);
  int fd = args.Fd(0);
  int seals = args.Int(1, 0);
  return Result(info.Env(), fcntl(fd, F_ADD_SEALS, seals));
}

/// getSeals(fd) → seals; -EINVAL for a file that has none.
Napi::Value GetSeals(const Napi::CallbackInfo& info) {
  Args args(info);
  int fd = args.Fd(0);
  return Result(info.Env(), fcntl(fd, F_GET_SEALS));
}

struct flock LockOf(const Args& args) {
  struct flock lock {};
  lock.l_type = static_cast<short>(args.Int(1, F_RDLCK, F_UNLCK));
  lock.l_whence = SEEK_SET;
  lock.l_start = static_cast<off_t>(args.Size(2));
  lock.l_len = static_cast<off_t>(args.Size(3));
  return lock;
}

/// setLock(fd, type, start, length) → 0; -EAGAIN when another open file holds it. Lock of the open file description.
Napi::Value SetLock(const Napi::CallbackInfo& info) {
  Args args(info);
  int fd = args.Fd(0);
  struct flock lock = LockOf(args);
  return Result(info.Env(), fcntl(fd, F_OFD_SETLK, &lock));
}

/// testLock(fd, type, start, length) → F_UNLCK when setLock would succeed, else the type of the lock in the way.
Napi::Value TestLock(const Napi::CallbackInfo& info) {
  Args args(info);
  int fd = args.Fd(0);
  struct flock lock = LockOf(args);
  if (fcntl(fd, F_OFD_GETLK, &lock) != 0) return Result(info.Env(), -1);
  return Number(info.Env(), lock.l_type);
}

/// allocate(fd, mode, offset, length) → 0; mode is that of fallocate(2).
Napi::Value Allocate(const Napi::CallbackInfo& info) {
  Args args(info);
  int fd = args.Fd(0);
  int mode = args.Int(1, 0);
  uint64_t offset = args.Size(2);
  uint64_t length = args.Size(3);
  return Result(info.Env(), fallocate(fd, mode, static_cast<off_t>(offset), static_cast<off_t>(length)));
}

/// RWF_NOWAIT: musl before 1.2.5 has neither the name nor the two calls.
constexpr int kNoWait = 8;

/// preadv2(2) or pwritev2(2). Parts may be one Uint8Array or an array of at most 1024.
Napi::Value Vector(const Napi::CallbackInfo& info, long call) {
  Args args(info);
  int fd = args.Fd(0);
  uint64_t position = args.Size(2);
  iovec parts[kMaxParts];
  uint32_t count = args.Parts(1, parts, kMaxParts);
  if (count > kMaxParts) return Number(info.Env(), -EINVAL);
  // The kernel puts the offset together of two words, of which the first is all of it where a word has 64 bits.
  static_assert(sizeof(long) == 8);
  long offset = static_cast<long>(position);
  return Result(info.Env(), syscall(call, static_cast<long>(fd), parts, static_cast<long>(count), offset, 0L, kNoWait));
}

/// readNow(fd, parts, position) → bytes read; -EAGAIN when it would have to wait for the disk.
Napi::Value ReadNow(const Napi::CallbackInfo& info) { return Vector(info, SYS_preadv2); }

/// writeNow(fd, parts, position) → bytes written; -EAGAIN when it would wait, -EOPNOTSUPP where the file system cannot tell.
Napi::Value WriteNow(const Napi::CallbackInfo& info) { return Vector(info, SYS_pwritev2); }

}  // namespace

void InitFile(Napi::Object exports) {
  Export<Close>(exports, "close");
  Export<CloseFdLater>(exports, "closeLater");
  Export<CountClosing>(exports, "closing");
  Export<Duplicate>(exports, "duplicate");
  Export<PidfdOpen>(exports, "pidfdOpen");
  Export<Stat>(exports, "stat");
  Export<Poll>(exports, "poll");
  Export<Truncate>(exports, "truncate");
  Export<AddSeals>(exports, "addSeals");
  Export<GetSeals>(exports, "getSeals");
  Export<SetLock>(exports, "setLock");
  Export<TestLock>(exports, "testLock");
  Export<Allocate>(exports, "allocate");
  Export<ReadNow>(exports, "readNow");
  Export<WriteNow>(exports, "writeNow");
}

}  // namespace devstate
