// SPDX-License-Identifier: Apache-2.0
#include "sigbus.h"

#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <mutex>

namespace devstate {
namespace {

/// As many as the DMA maps that one vfio-user client may have (max_dma_maps), with room for other mappings.
constexpr int kSlots = 1 << 17;

/// One guarded mapping. The handler may interrupt any thread, so it reads these without a lock: `start` is written last
/// when a slot is taken and cleared first when it is given back.
struct Slot {
  std::atomic<uintptr_t> start{0};
  std::atomic<uintptr_t> end{0};
  std::atomic<size_t> pageSize{0};
  std::atomic<int> protection{0};
  std::atomic<bool> faulted{false};
};

Slot slots[kSlots];
std::atomic<int> slotsEverUsed{0};

std::mutex mutex;        // Guards the two below; never taken by the handler.
int freeSlots[kSlots];
int freeCount = 0;

struct sigaction previous;

/// Replaces the mapping from the faulting page on: after a truncation nothing behind it is there either. One range rather
/// than page by page, because a process has a limited number of ranges and running out of them would kill it after all.
bool ReplaceMissing(uintptr_t address) {
  int used = slotsEverUsed.load(std::memory_order_acquire);
  for (int i = 0; i < used; i++) {
    Slot& slot = slots[i];
    uintptr_t start = slot.start.load(std::memory_order_acquire);
    uintptr_t end = slot.end.load(std::memory_order_relaxed);
    if (start == 0 || address < start || address >= end) continue;
    size_t pageSize = slot.pageSize.load(std::memory_order_relaxed);
    uintptr_t page = address & ~(static_cast<uintptr_t>(pageSize) - 1);
    int protection = slot.protection.load(std::memory_order_relaxed);
    constexpr int kFlags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE;
    auto* at = reinterpret_cast<void*>(page);
    if (mmap(at, end - page, protection, kFlags, -1, 0) == MAP_FAILED &&
        mmap(at, pageSize, protection, kFlags, -1, 0) == MAP_FAILED) {
      return false;
    }
    slot.faulted.store(true, std::memory_order_release);
    return true;
  }
  return false;
}

void OnSigbus(int number, siginfo_t* info, void* context) {
  int saved = errno;
  // BUS_ADRERR is an access beyond the file's end; a memory error of the hardware must not be papered over with zeros.
  bool replaced = info->si_code == BUS_ADRERR && ReplaceMissing(reinterpret_cast<uintptr_t>(info->si_addr));
  errno = saved;
  if (replaced) return;
  if ((previous.sa_flags & SA_SIGINFO) != 0) {
    previous.sa_sigaction(number, info, context);
  } else if (previous.sa_handler != SIG_DFL && previous.sa_handler != SIG_IGN) {
    previous.sa_handler(number);
  } else if (previous.sa_handler == SIG_DFL || info->si_code > 0) {
    // The default action: an access faults again on return, a signal that was sent has to be sent again.
    signal(number, SIG_DFL);
    if (info->si_code <= 0) raise(number);
  }
}

void InstallHandler() {
  struct sigaction action {};
  action.sa_sigaction = OnSigbus;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART;
  sigemptyset(&action.sa_mask);
  sigaction(SIGBUS, &action, &previous);
}

}  // namespace

int GuardMapping(void* address, size_t length, size_t pageSize, int protection) {
  static std::once_flag installed;
  std::call_once(installed, InstallHandler);
  std::lock_guard<std::mutex> lock(mutex);
  int index;
  if (freeCount > 0) {
    index = freeSlots[--freeCount];
  } else {
    index = slotsEverUsed.load(std::memory_order_relaxed);
    if (index == kSlots) return -1;
  }
  Slot& slot = slots[index];
  slot.faulted.store(false, std::memory_order_relaxed);
  slot.protection.store(protection, std::memory_order_relaxed);
  slot.pageSize.store(pageSize, std::memory_order_relaxed);
  slot.end.store(reinterpret_cast<uintptr_t>(address) + length, std::memory_order_relaxed);
  slot.start.store(reinterpret_cast<uintptr_t>(address), std::memory_order_release);
  if (index == slotsEverUsed.load(std::memory_order_relaxed)) {
    slotsEverUsed.store(index + 1, std::memory_order_release);
  }
  return index;
}

bool MappingFaulted(int slot) { return slots[slot].faulted.load(std::memory_order_acquire); }

void UnguardMapping(int slot) {
  std::lock_guard<std::mutex> lock(mutex);
  slots[slot].start.store(0, std::memory_order_release);
  freeSlots[freeCount++] = slot;
}

}  // namespace devstate
