// SPDX-License-Identifier: Apache-2.0
// close(2) of a file that a peer passed may block: a TCP socket that lingers, a file of a FUSE or network file system, the
// last reference to gigabytes of memory, a UNIX socket with any of these in its queue. munmap(2) frees the pages of the
// range, and the file's when it was the last reference. Neither may happen on the event loop.
//
// The threads are not libuv's: those are joined when the process exits, and it must not wait for a close that hangs. They
// are detached, and what they share is never destroyed. A close that hangs ends with the process (it lingers no longer, a
// fatal signal interrupts it).
#include "reaper.h"

#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <mutex>
#include <unordered_map>

namespace devstate {
namespace {

constexpr uint32_t kMaxClosers = 32;
/// Most threads that the closes of one group occupy.
constexpr uint32_t kClosersPerGroup = 4;
/// How long an idle thread stays.
constexpr std::chrono::seconds kIdle{5};
/// Unmapped at once. The kernel holds up other changes of the address space meanwhile.
constexpr size_t kSlice = size_t{64} << 20;
constexpr size_t kStack = size_t{256} << 10;

struct Close {
  int fd;
  uint32_t group;
};

struct Range {
  uint8_t* address;
  size_t length;
  std::atomic<uint32_t>* count;
};

struct Group {
  uint32_t pending = 0;
  uint32_t running = 0;
};

struct Reaper {
  std::mutex mutex;
  std::condition_variable closeQueued;
  std::condition_variable unmapQueued;
  std::condition_variable unmapped;
  std::deque<Close> closes;
  std::unordered_map<uint32_t, Group> groups;
  uint32_t pending = 0;
  uint32_t closers = 0;
  uint32_t idleClosers = 0;
  std::deque<Range> ranges;
  bool unmapperRuns = false;
  bool unmapping = false;
  uint64_t unmapCount = 0;
};

/// Never destroyed: the threads may outlive the destructors of the process.
Reaper& Shared() {
  static auto* reaper = new Reaper;
  return *reaper;
}

bool StartThread(void* (*body)(void*)) {
  pthread_attr_t attributes;
  if (pthread_attr_init(&attributes) != 0) return false;
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  pthread_t thread;
  bool started = false;
  if (pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED) == 0 &&
      pthread_attr_setstacksize(&attributes, kStack) == 0 && pthread_sigmask(SIG_SETMASK, &all, &before) == 0) {
    started = pthread_create(&thread, &attributes, body, nullptr) == 0;
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
  }
  pthread_attr_destroy(&attributes);
  return started;
}

/// Takes the first close whose group has a thread to spare.
bool TakeClose(Reaper& reaper, Close* out) {
  for (auto close = reaper.closes.begin(); close != reaper.closes.end(); ++close) {
    Group& group = reaper.groups[close->group];
    if (group.running >= kClosersPerGroup) continue;
    group.running++;
    *out = *close;
    reaper.closes.erase(close);
    return true;
  }
  return false;
}

void* RunCloser(void*) {
  Reaper& reaper = Shared();
  std::unique_lock<std::mutex> lock(reaper.mutex);
  for (;;) {
    Close job;
    while (!TakeClose(reaper, &job)) {
      reaper.idleClosers++;
      bool late = reaper.closeQueued.wait_for(lock, kIdle) == std::cv_status::timeout;
      reaper.idleClosers--;
      // A close that is queued and of a group with enough threads is left to those: they look again when they return.
      if (late && reaper.closes.size() == 0) {
        reaper.closers--;
        return nullptr;
      }
    }
    lock.unlock();
    close(job.fd);
    lock.lock();
    auto group = reaper.groups.find(job.group);
    group->second.running--;
    reaper.pending--;
    if (--group->second.pending == 0) reaper.groups.erase(group);
  }
}

void* RunUnmapper(void*) {
  Reaper& reaper = Shared();
  std::unique_lock<std::mutex> lock(reaper.mutex);
  for (;;) {
    reaper.unmapQueued.wait(lock, [&] { return !reaper.ranges.empty(); });
    Range range = reaper.ranges.front();
    reaper.ranges.pop_front();
    reaper.unmapping = true;
    lock.unlock();
    // From the end, so that what is left stays one range.
    while (range.length > 0) {
      size_t slice = range.length > kSlice ? kSlice : range.length;
      range.length -= slice;
      munmap(range.address + range.length, slice);
    }
    (*range.count)--;
    lock.lock();
    reaper.unmapping = false;
    reaper.unmapCount++;
    reaper.unmapped.notify_all();
  }
}

}  // namespace

void CloseLater(int fd, uint32_t groupOf) {
  Reaper& reaper = Shared();
  {
    std::lock_guard<std::mutex> lock(reaper.mutex);
    bool wanted = reaper.closes.size() >= reaper.idleClosers && reaper.closers < kMaxClosers &&
                  (reaper.closers == 0 || reaper.groups[groupOf].pending < kClosersPerGroup);
    if (wanted && StartThread(RunCloser)) reaper.closers++;
    if (reaper.closers > 0) {
      reaper.groups[groupOf].pending++;
      reaper.pending++;
      reaper.closes.push_back({fd, groupOf});
      reaper.closeQueued.notify_one();
      return;
    }
  }
  close(fd);  // There is no thread to be had.
}

uint32_t Closing(uint32_t group) {
  Reaper& reaper = Shared();
  std::lock_guard<std::mutex> lock(reaper.mutex);
  auto found = reaper.groups.find(group);
  return found == reaper.groups.end() ? 0 : found->second.pending;
}

uint32_t ClosingOfAll() {
  Reaper& reaper = Shared();
  std::lock_guard<std::mutex> lock(reaper.mutex);
  return reaper.pending;
}

void UnmapLater(void* address, size_t length, std::atomic<uint32_t>* count) {
  Reaper& reaper = Shared();
  {
    std::lock_guard<std::mutex> lock(reaper.mutex);
    if (!reaper.unmapperRuns) reaper.unmapperRuns = StartThread(RunUnmapper);
    if (reaper.unmapperRuns) {
      reaper.ranges.push_back({static_cast<uint8_t*>(address), length, count});
      reaper.unmapQueued.notify_one();
      return;
    }
  }
  munmap(address, length);
  (*count)--;
}

uint32_t Unmapping() {
  Reaper& reaper = Shared();
  std::lock_guard<std::mutex> lock(reaper.mutex);
  return static_cast<uint32_t>(reaper.ranges.size()) + (reaper.unmapping ? 1 : 0);
}

bool WaitForUnmap(unsigned milliseconds) {
  Reaper& reaper = Shared();
  std::unique_lock<std::mutex> lock(reaper.mutex);
  if (reaper.ranges.empty() && !reaper.unmapping) return false;
  uint64_t before = reaper.unmapCount;
  return reaper.unmapped.wait_for(lock, std::chrono::milliseconds(milliseconds),
                                  [&] { return reaper.unmapCount != before; });
}

}  // namespace devstate
