// SPDX-License-Identifier: Apache-2.0
// Paths, where Node's fs has no call: an open file linked into a directory, and the lock of flock(2).
#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <cstdio>

#include "support.h"

namespace devstate {
namespace {

/// linkFile(fd, path) → 0; -EEXIST when something is there. For a file opened with O_TMPFILE. Needs /proc.
Napi::Value LinkFile(const Napi::CallbackInfo& info) {
  Args args(info);
  int fd = args.Fd(0);
  char path[PATH_MAX];
  bool fits = args.String(1, path, sizeof path);
  if (!fits) return Number(info.Env(), -ENAMETOOLONG);
  char open[64];
  snprintf(open, sizeof open, "/proc/self/fd/%d", fd);
  return Result(info.Env(), linkat(AT_FDCWD, open, AT_FDCWD, path, AT_SYMLINK_FOLLOW));
}

/// tryFlock(fd) → 0, the lock of flock(2) is this open file's until it is closed; -EWOULDBLOCK when another has it.
Napi::Value TryFlock(const Napi::CallbackInfo& info) {
  Args args(info);
  int fd = args.Fd(0);
  return Result(info.Env(), flock(fd, LOCK_EX | LOCK_NB));
}

}  // namespace

void InitPath(Napi::Object exports) {
  Export<LinkFile>(exports, "linkFile");
  Export<TryFlock>(exports, "tryFlock");
}

}  // namespace devstate
