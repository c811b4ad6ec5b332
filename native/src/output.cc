// SPDX-License-Identifier: Apache-2.0
// Lines to a descriptor whose reader may stand still: written by a thread of their own, queued up to a limit.
//
// The descriptor may be a pipe, a terminal, a socket or a file, and other processes may have the same open file, so that
// it must not be made non-blocking. The thread is detached: one that is blocked in write(2) does not hold up the end of
// the process. A writer lives as long as the process.
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <string>

#include "support.h"
#include "unique-fd.h"

namespace devstate {
namespace {

struct Line {
  std::string text;
  uint32_t weight;  ///< Lines that are lost with it.
};

struct Writer {
  UniqueFd fd;
  size_t limit;

  Writer(UniqueFd&& own, size_t most) : fd(std::move(own)), limit(most) {}

  std::mutex mutex;
  std::condition_variable changed;
  std::deque<Line> lines;  ///< The first one is being written.
  size_t queued = 0;       ///< Bytes of `lines`.
  uint64_t dropped = 0;    ///< Lines lost since they were last asked for.
  uint64_t written = 0;    ///< Bytes, for `flush` to see progress.
};

constexpr size_t kMaxWriters = 8;
std::mutex registryMutex;
Writer* registry[kMaxWriters];
size_t registered = 0;

/// Writes a whole line. False when the descriptor takes no more of it.
bool WriteAll(Writer* writer, const std::string& text) {
  for (size_t done = 0; done < text.size();) {
    ssize_t count = write(writer->fd.Get(), text.data() + done, text.size() - done);
    if (count > 0) {
      done += static_cast<size_t>(count);
      std::lock_guard<std::mutex> lock(writer->mutex);
      writer->written += static_cast<uint64_t>(count);
    } else if (count < 0 && (errno == EAGAIN || errno == EINTR)) {
      // Somebody else made the open file non-blocking.
      pollfd ready{writer->fd.Get(), POLLOUT, 0};
      if (errno == EAGAIN) poll(&ready, 1, -1);
    } else {
      return false;
    }
  }
  return true;
}

void* Run(void* argument) {
  auto* writer = static_cast<Writer*>(argument);
  std::unique_lock<std::mutex> lock(writer->mutex);
  for (;;) {
    writer->changed.wait(lock, [writer] { return !writer->lines.empty(); });
    // A deque's elements stay where they are while others are added.
    const Line& line = writer->lines.front();
    lock.unlock();
    bool whole = WriteAll(writer, line.text);
    lock.lock();
    if (!whole) writer->dropped += line.weight;
    writer->queued -= line.text.size();
    writer->lines.pop_front();
    if (writer->lines.empty()) writer->changed.notify_all();
  }
}

/// The writer that argument 0 names.
Writer* WriterOf(const Args& args) {
  uint32_t index = args.Unsigned(0);
  {
    std::lock_guard<std::mutex> lock(registryMutex);
    if (index < registered) return registry[index];
  }
  args.Fail(0, "a number that outputOpen gave");
}

/// outputOpen(fd, limit) → number of a writer
Napi::Value Open(const Napi::CallbackInfo& info) {
  Args args(info);
  int fd = args.Fd(0);
  uint64_t limit = args.Size(1);
  std::lock_guard<std::mutex> lock(registryMutex);
  if (registered == kMaxWriters) return Number(info.Env(), -EMFILE);
  // Its own number: what fd 2 is may change.
  UniqueFd own(fcntl(fd, F_DUPFD_CLOEXEC, 3));
  if (own.Get() < 0) return Result(info.Env(), -1);
  auto writer = std::make_unique<Writer>(std::move(own), limit);
  pthread_t thread;
  int failed = pthread_create(&thread, nullptr, Run, writer.get());
  if (failed != 0) return Number(info.Env(), -failed);
  registry[registered] = writer.release();
  pthread_detach(thread);
  return Number(info.Env(), static_cast<int64_t>(registered++));
}

/// outputWrite(writer, bytes, weight) → lines dropped since outputState was last called, this one included
Napi::Value Write(const Napi::CallbackInfo& info) {
  Args args(info);
  Writer* writer = WriterOf(args);
  Bytes bytes = args.Uint8Array(1);
  uint32_t weight = args.Unsigned(2);
  std::lock_guard<std::mutex> lock(writer->mutex);
  if (bytes.length > writer->limit - writer->queued) {
    writer->dropped += weight;
    return Number(info.Env(), static_cast<int64_t>(writer->dropped));
  }
  writer->lines.push_back({std::string(reinterpret_cast<const char*>(bytes.data), bytes.length), weight});
  writer->queued += bytes.length;
  writer->changed.notify_all();
  return Number(info.Env(), static_cast<int64_t>(writer->dropped));
}

/// outputState(writer, Float64Array) → bytes queued, lines dropped since the last call
Napi::Value State(const Napi::CallbackInfo& info) {
  Args args(info);
  Writer* writer = WriterOf(args);
  double* out = args.Float64Array(1, 2);
  std::lock_guard<std::mutex> lock(writer->mutex);
  out[0] = static_cast<double>(writer->queued);
  out[1] = static_cast<double>(writer->dropped);
  writer->dropped = 0;
  return Number(info.Env(), 0);
}

/// outputFlush(writer, ms) → 1 when all is written, 0 when nothing was for `ms`, or not all in ten times that
Napi::Value Flush(const Napi::CallbackInfo& info) {
  Args args(info);
  Writer* writer = WriterOf(args);
  uint32_t ms = args.Unsigned(1);
  std::unique_lock<std::mutex> lock(writer->mutex);
  for (int rounds = 1;; rounds++) {
    uint64_t before = writer->written;
    bool empty = writer->changed.wait_for(lock, std::chrono::milliseconds(ms), [writer] { return writer->lines.empty(); });
    if (empty || writer->written == before || rounds == 10) return Number(info.Env(), empty ? 1 : 0);
  }
}

}  // namespace

void InitOutput(Napi::Object exports) {
  Export<Open>(exports, "outputOpen");
  Export<Write>(exports, "outputWrite");
  Export<State>(exports, "outputState");
  Export<Flush>(exports, "outputFlush");
}

}  // namespace devstate
