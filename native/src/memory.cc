// SPDX-License-Identifier: Apache-2.0
// Memory files and their mappings.
//
// A mapping hands out windows: ArrayBuffers over parts of it. What keeps an ArrayBuffer from outliving its memory:
//  * unmap() detaches every window that still exists before the memory goes, so JavaScript sees length 0;
//  * each window holds a reference on the memory until the engine has finalized it, so a Mapping that is collected while
//    its windows live is unmapped with the last of them;
//  * asynchronous I/O of Node holds a raw pointer that detaching cannot reach, therefore pin(): the memory stays mapped
//    until unpin(), even after unmap().
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <iterator>
#include <map>

#include "reaper.h"
#include "sigbus.h"
#include "support.h"

namespace devstate {
namespace {
struct Window;
}

/// What one mmap made; given back with the last Memory in it.
struct Range {
  uint8_t* address;
  size_t length;
  int guard;
  std::shared_ptr<MappedRanges> mapped;

  ~Range();
};

/// All or a part of a range: what a Mapping object, its windows and its pins share.
struct Memory {
  static constexpr napi_type_tag kTag = {0x6465767374617465, 0x6d617070696e6701};
  std::shared_ptr<Range> range;  ///< Empty once it is unmapped.
  uint8_t* address = nullptr;
  size_t length = 0;
  uint32_t references = 1;  ///< The Mapping object, each window, each pin.
  uint32_t pins = 0;
  bool unmapRequested = false;
  bool faulted = false;  ///< What is left to say once the range is gone.
  Window* windows = nullptr;
};

namespace {

constexpr uint64_t kMaxWindow = uint64_t{1} << 30;
constexpr uint32_t kReadable = 1;
constexpr uint32_t kWritable = 2;
constexpr uint32_t kResident = 4;
/// Ranges of the process's own that MaxRanges() leaves room for, when the system has that many.
constexpr unsigned long kReserve = 8192;
/// As many as the guard has slots for.
constexpr unsigned long kMaxRanges = 1 << 16;

/// How long a map that finds no room waits for an unmap that is under way.
constexpr unsigned kWaitForRoomMs = 50;

struct Window {
  Memory* memory;
  napi_ref buffer;  ///< Weak.
  Window* previous;
  Window* next;
};

/// Ranges that are mapped or wait to be unmapped, in the whole process.
std::atomic<uint32_t> rangeCount{0};

/// How many ranges peers can have us map. The process needs some for itself: without any, memory cannot be had from the
/// system any more, and V8 ends the process. And a range of which a part went missing becomes two.
uint32_t MaxRanges() {
  static const uint32_t most = [] {
    unsigned long limit = 65530;
    if (FILE* file = fopen("/proc/sys/vm/max_map_count", "re")) {
      if (fscanf(file, "%lu", &limit) != 1) limit = 65530;
      fclose(file);
    }
    unsigned long reserve = limit / 8 < kReserve ? limit / 8 : kReserve;
    unsigned long usable = (limit - reserve) / 2;
    return static_cast<uint32_t>(usable < kMaxRanges ? usable : kMaxRanges);
  }();
  return most;
}

void Unmap(Memory* memory) {
  if (memory->range == nullptr) return;
  memory->faulted = MappingFaulted(memory->range->guard);
  memory->address = nullptr;
  memory->range.reset();
}

void Release(Memory* memory) {
  if (--memory->references > 0) return;
  Unmap(memory);
  delete memory;
}

void OnWindowFinalized(napi_env env, void*, void* hint) {
  auto* window = static_cast<Window*>(hint);
  if (window->previous != nullptr) window->previous->next = window->next;
  if (window->next != nullptr) window->next->previous = window->previous;
  if (window->memory->windows == window) window->memory->windows = window->next;
  if (window->buffer != nullptr) DeleteReference(env, window->buffer);
  Release(window->memory);
  delete window;
}

void OnMappingCollected(napi_env, void* pointer, void*) { Release(static_cast<Memory*>(pointer)); }

/// Page size of the file behind `fd`: huge pages can only be replaced whole.
size_t PageSizeOf(int fd) {
  struct statfs info;
  if (fstatfs(fd, &info) == 0 && info.f_type == HUGETLBFS_MAGIC) return static_cast<size_t>(info.f_bsize);
  return static_cast<size_t>(sysconf(_SC_PAGESIZE));
}

/// Takes `memory`.
napi_value MappingOf(napi_env env, Memory* memory) {
  napi_value instance =
      NewInstance(env, GetAddonData(env)->mappingClass, &Memory::kTag, memory, OnMappingCollected);
  if (instance == nullptr) Release(memory);
  return instance;
}

/// map(fd, offset, length, protection) → Mapping; shared, protection 1 read, 2 write, 4 all of it in memory from now on, as
/// far as this process may lock it. The fd may be closed afterwards.
napi_value Map(napi_env env, napi_callback_info info) {
  Arguments args(env, info);
  int fd = args.Fd(0);
  uint64_t offset = args.Size(1);
  uint64_t length = args.Size(2);
  uint32_t access = args.Unsigned(3);
  if (args.failed()) return nullptr;
  int protection = ((access & kReadable) != 0 ? PROT_READ : 0) | ((access & kWritable) != 0 ? PROT_WRITE : 0);
  bool resident = (access & kResident) != 0;
  int flags = MAP_SHARED | (resident ? MAP_POPULATE : 0);
  if (rangeCount >= MaxRanges() && !(WaitForUnmap(kWaitForRoomMs) && rangeCount < MaxRanges())) {
    return Number(env, -ENOMEM);
  }
  void* address;
  do {
    errno = ENOMEM;
    address = mmap(nullptr, length, protection, flags, fd, static_cast<off_t>(offset));
  } while (address == MAP_FAILED && errno == ENOMEM && WaitForUnmap(kWaitForRoomMs));
  if (address == MAP_FAILED) return Number(env, -errno);
  // Without the right to lock it stays resident unless memory runs short.
  if (resident && mlock(address, length) != 0) errno = 0;
  int guard = GuardMapping(address, length, PageSizeOf(fd), protection);
  if (guard < 0) {
    munmap(address, length);
    return Number(env, -ENOMEM);
  }
  rangeCount++;
  auto mapped = GetAddonData(env)->mapped;
  auto* memory = new Memory;
  memory->range.reset(new Range{static_cast<uint8_t*>(address), length, guard, mapped});
  (*mapped)[reinterpret_cast<uintptr_t>(address)] = memory->range;
  memory->address = static_cast<uint8_t*>(address);
  memory->length = length;
  return MappingOf(env, memory);
}

/// part(offset, length) → Mapping of a part of the same range, which stays mapped until both are unmapped.
napi_value MakePart(napi_env env, napi_callback_info info) {
  Arguments args(env, info);
  auto* memory = args.Self<Memory>();
  uint64_t offset = args.Size(0);
  uint64_t length = args.Size(1);
  if (args.failed()) return nullptr;
  if (memory->unmapRequested) return Number(env, -EBADF);
  if (length == 0 || offset > memory->length || length > memory->length - offset) return Number(env, -EINVAL);
  auto* part = new Memory;
  part->range = memory->range;
  part->address = memory->address + offset;
  part->length = length;
  return MappingOf(env, part);
}

/// window(offset, length) → ArrayBuffer over that part, 1 byte to 1 GiB.
napi_value MakeWindow(napi_env env, napi_callback_info info) {
  Arguments args(env, info);
  auto* memory = args.Self<Memory>();
  uint64_t offset = args.Size(0);
  uint64_t length = args.Size(1);
  if (args.failed()) return nullptr;
  if (memory->unmapRequested) return Number(env, -EBADF);
  if (length == 0 || length > kMaxWindow || offset > memory->length || length > memory->length - offset) {
    return Number(env, -EINVAL);
  }
  auto* window = new Window{memory, nullptr, nullptr, nullptr};
  napi_value buffer = nullptr;
  if (napi_create_external_arraybuffer(env, memory->address + offset, length, OnWindowFinalized, window, &buffer) !=
      napi_ok) {
    delete window;
    return Number(env, -ENOMEM);
  }
  memory->references++;
  if (napi_create_reference(env, buffer, 0, &window->buffer) != napi_ok) {
    // Not in the list, so unmap() would not find it: it must be of no use from the start.
    if (napi_detach_arraybuffer(env, buffer) != napi_ok) napi_fatal_error("devstate", 8, "a window cannot be kept", 23);
    return Number(env, -ENOMEM);
  }
  window->next = memory->windows;
  if (window->next != nullptr) window->next->previous = window;
  memory->windows = window;
  return buffer;
}

/// unmap(): detaches all windows and unmaps, at once or with the last unpin(). May be called again.
napi_value UnmapMapping(napi_env env, napi_callback_info info) {
  Arguments args(env, info);
  auto* memory = args.Self<Memory>();
  if (args.failed()) return nullptr;
  memory->unmapRequested = true;
  for (Window *window = memory->windows, *next; window != nullptr; window = next) {
    next = window->next;  // Detaching lets the engine finalize the window, at once or later.
    napi_value buffer = nullptr;
    if (napi_get_reference_value(env, window->buffer, &buffer) != napi_ok ||
        (buffer != nullptr && napi_detach_arraybuffer(env, buffer) != napi_ok)) {
      // Unmapped all the same it would be memory of something else next.
      return Failed(env, "a window cannot be detached");
    }
  }
  if (memory->pins == 0) Unmap(memory);
  return Number(env, 0);
}

/// pin(): keeps the memory mapped while asynchronous I/O may touch it.
napi_value Pin(napi_env env, napi_callback_info info) {
  Arguments args(env, info);
  auto* memory = args.Self<Memory>();
  if (args.failed()) return nullptr;
  if (memory->unmapRequested) return Number(env, -EBADF);
  memory->pins++;
  memory->references++;
  return Number(env, 0);
}

napi_value Unpin(napi_env env, napi_callback_info info) {
  Arguments args(env, info);
  auto* memory = args.Self<Memory>();
  if (args.failed()) return nullptr;
  if (memory->pins == 0) return Number(env, -EINVAL);
  memory->pins--;
  if (memory->pins == 0 && memory->unmapRequested) Unmap(memory);
  Release(memory);
  return Number(env, 0);
}

/// maxRanges() → ranges that can be mapped at once
napi_value CountMaxRanges(napi_env env, napi_callback_info) { return Number(env, MaxRanges()); }

/// unmapping() → ranges that were given up and are still mapped
napi_value CountUnmapping(napi_env env, napi_callback_info) { return Number(env, Unmapping()); }

napi_value Boolean(napi_env env, bool value) {
  napi_value out = nullptr;
  return napi_get_boolean(env, value, &out) == napi_ok ? out : Failed(env, "a boolean cannot be made");
}

napi_value Faulted(napi_env env, napi_callback_info info) {
  Arguments args(env, info);
  auto* memory = args.Self<Memory>();
  if (args.failed()) return nullptr;
  return Boolean(env, memory->range == nullptr ? memory->faulted : MappingFaulted(memory->range->guard));
}

napi_value Mapped(napi_env env, napi_callback_info info) {
  Arguments args(env, info);
  auto* memory = args.Self<Memory>();
  if (args.failed()) return nullptr;
  return Boolean(env, memory->address != nullptr);
}

napi_value Length(napi_env env, napi_callback_info info) {
  Arguments args(env, info);
  auto* memory = args.Self<Memory>();
  if (args.failed()) return nullptr;
  return Number(env, static_cast<int64_t>(memory->length));
}

/// memfdCreate(name) → fd, sealable
napi_value MemfdCreate(napi_env env, napi_callback_info info) {
  Arguments args(env, info);
  char name[250];
  bool fits = args.String(0, name, sizeof name);
  if (args.failed()) return nullptr;
  if (!fits) return Number(env, -EINVAL);
  return Result(env, memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING));
}

}  // namespace

Range::~Range() {
  UnguardMapping(guard);
  mapped->erase(reinterpret_cast<uintptr_t>(address));
  UnmapLater(address, length, &rangeCount);
}

RangeHold HoldRangeAt(napi_env env, const uint8_t* bytes, size_t length) {
  auto& mapped = *GetAddonData(env)->mapped;
  auto after = mapped.upper_bound(reinterpret_cast<uintptr_t>(bytes));
  if (after == mapped.begin()) return nullptr;
  auto range = std::prev(after)->second.lock();
  if (range == nullptr || bytes + length > range->address + range->length) return nullptr;
  return range;
}

uint8_t* MappedMemory(napi_env env, napi_value value, uint64_t* length) {
  bool isMapping = false;
  napi_valuetype kind = napi_undefined;
  void* pointer = nullptr;
  if (value == nullptr || napi_typeof(env, value, &kind) != napi_ok || kind != napi_object ||
      napi_check_object_type_tag(env, value, &Memory::kTag, &isMapping) != napi_ok || !isMapping ||
      napi_unwrap(env, value, &pointer) != napi_ok) {
    return nullptr;
  }
  auto* memory = static_cast<Memory*>(pointer);
  if (memory->unmapRequested) return nullptr;
  *length = memory->length;
  return memory->address;
}

void InitMemory(napi_env env, napi_value exports, AddonData* data) {
  const napi_property_descriptor members[] = {
      {"window", nullptr, MakeWindow, nullptr, nullptr, nullptr, napi_default_method, nullptr},
      {"part", nullptr, MakePart, nullptr, nullptr, nullptr, napi_default_method, nullptr},
      {"unmap", nullptr, UnmapMapping, nullptr, nullptr, nullptr, napi_default_method, nullptr},
      {"pin", nullptr, Pin, nullptr, nullptr, nullptr, napi_default_method, nullptr},
      {"unpin", nullptr, Unpin, nullptr, nullptr, nullptr, napi_default_method, nullptr},
      {"length", nullptr, nullptr, Length, nullptr, nullptr, napi_enumerable, nullptr},
      {"mapped", nullptr, nullptr, Mapped, nullptr, nullptr, napi_enumerable, nullptr},
      {"faulted", nullptr, nullptr, Faulted, nullptr, nullptr, napi_enumerable, nullptr},
  };
  data->mappingClass = DefineClass(env, "Mapping", members, sizeof members / sizeof *members);
  Export(env, exports, "map", Map);
  Export(env, exports, "maxRanges", CountMaxRanges);
  Export(env, exports, "unmapping", CountUnmapping);
  Export(env, exports, "memfdCreate", MemfdCreate);
}

}  // namespace devstate
