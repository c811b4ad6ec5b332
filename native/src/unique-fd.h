// SPDX-License-Identifier: Apache-2.0
// A file descriptor that is closed when its owner goes out of scope.
#pragma once

#include <unistd.h>

#include <utility>

#include "support.h"

namespace devstate {

class UniqueFd {
 public:
  explicit UniqueFd(int fd) : fd_(fd) {}
  UniqueFd(UniqueFd&& other) noexcept : fd_(other.Release()) {}
  UniqueFd(const UniqueFd&) = delete;
  UniqueFd& operator=(const UniqueFd&) = delete;
  ~UniqueFd() {
    if (fd_ >= 0) close(fd_);
  }
  /// Negative when there is none.
  int Get() const { return fd_; }
  /// Gives the descriptor to the caller.
  int Release() { return std::exchange(fd_, -1); }

 private:
  int fd_;
};

/// The number of `fd`, which is JavaScript's from then on; the negative errno when there is none.
inline Napi::Value Give(Napi::Env env, UniqueFd fd) {
  Napi::Value number = Result(env, fd.Get());
  fd.Release();
  return number;
}

}  // namespace devstate
