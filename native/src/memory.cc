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

#include <cerrno>
#include <map>

#include "reaper.h"
#include "sigbus.h"
#include "support.h"

namespace devstate {
namespace {
struct Window;
}

/// The mapped range, shared by the Mapping object, its windows and its pins.
struct Memory {
  std::shared_ptr<MappedRanges> mapped;
  uint8_t* address = nullptr;
  size_t length = 0;
  int guard = -1;
  uint32_t references = 1;  ///< The Mapping object, each window, each pin.
  uint32_t pins = 0;
  bool unmapRequested = false;
  bool faulted = false;  ///< The last word once the range is gone.
  Window* windows = nullptr;
};

namespace {

constexpr uint64_t kMaxWindow = uint64_t{1} << 30;
constexpr uint32_t kReadable = 1;
constexpr uint32_t kWritable = 2;
constexpr uint32_t kResident = 4;

/// How long a map that finds no room waits for an unmap that is under way.
constexpr unsigned kWaitForRoomMs = 50;

struct Window {
  Memory* memory;
  napi_ref buffer;  ///< Weak.
  Window* previous;
  Window* next;
};

void Unmap(Memory* memory) {
  if (memory->address == nullptr) return;
  memory->faulted = MappingFaulted(memory->guard);
  UnguardMapping(memory->guard);
  memory->mapped->erase(reinterpret_cast<uintptr_t>(memory->address));
  UnmapLater(memory->address, memory->length);
  memory->address = nullptr;
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
  napi_delete_reference(env, window->buffer);
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

/// map(fd, offset, length, protection) → Mapping; shared, protection 1 read, 2 write, 4 all of it in memory from now on, as
/// far as this process may lock it. The fd may be closed afterwards.
napi_value Map(napi_env env, napi_callback_info info) {
  Arguments args(env, info);
  int fd = args.Int(0);
  uint64_t offset = args.Size(1);
  uint64_t length = args.Size(2);
  uint32_t access = args.Unsigned(3);
  if (args.failed()) return nullptr;
  int protection = ((access & kReadable) != 0 ? PROT_READ : 0) | ((access & kWritable) != 0 ? PROT_WRITE : 0);
  bool resident = (access & kResident) != 0;
  int flags = MAP_SHARED | (resident ? MAP_POPULATE : 0);
  void* address;
  do {
    address = mmap(nullptr, length, protection, flags, fd, static_cast<off_t>(offset));
  } while (address == MAP_FAILED && errno == ENOMEM && WaitForUnmap(kWaitForRoomMs));
  if (address == MAP_FAILED) return Number(env, errno == 0 ? -ENOMEM : -errno);
  // Without the right to lock it stays resident unless memory runs short.
  if (resident && mlock(address, length) != 0) errno = 0;
  int guard = GuardMapping(address, length, PageSizeOf(fd), protection);
  if (guard < 0) {
    munmap(address, length);
    return Number(env, -ENOMEM);
  }
  auto* memory = new Memory;
  memory->mapped = GetAddonData(env)->mapped;
  (*memory->mapped)[reinterpret_cast<uintptr_t>(address)] = memory;
  memory->address = static_cast<uint8_t*>(address);
  memory->length = length;
  memory->guard = guard;
  napi_value constructor = nullptr;
  napi_value instance = nullptr;
  napi_get_reference_value(env, GetAddonData(env)->mappingClass, &constructor);
  napi_new_instance(env, constructor, 0, nullptr, &instance);
  napi_wrap(env, instance, memory, OnMappingCollected, nullptr, nullptr);
  return instance;
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
  napi_create_reference(env, buffer, 0, &window->buffer);
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
    napi_get_reference_value(env, window->buffer, &buffer);
    if (buffer != nullptr) napi_detach_arraybuffer(env, buffer);
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
  UnpinMemory(memory);
  return Number(env, 0);
}

/// unmapping() → ranges that were given up and are still mapped
napi_value CountUnmapping(napi_env env, napi_callback_info) { return Number(env, Unmapping()); }

napi_value Boolean(napi_env env, bool value) {
  napi_value out = nullptr;
  napi_get_boolean(env, value, &out);
  return out;
}

napi_value Faulted(napi_env env, napi_callback_info info) {
  Arguments args(env, info);
  auto* memory = args.Self<Memory>();
  if (args.failed()) return nullptr;
  return Boolean(env, memory->address == nullptr ? memory->faulted : MappingFaulted(memory->guard));
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

napi_value Construct(napi_env env, napi_callback_info info) { return Arguments(env, info).self(); }

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

Memory* PinMemoryAt(napi_env env, const uint8_t* bytes, size_t length) {
  auto& mapped = *GetAddonData(env)->mapped;
  auto after = mapped.upper_bound(reinterpret_cast<uintptr_t>(bytes));
  if (after == mapped.begin()) return nullptr;
  Memory* memory = std::prev(after)->second;
  if (bytes + length > memory->address + memory->length) return nullptr;
  memory->pins++;
  memory->references++;
  return memory;
}

void UnpinMemory(Memory* memory) {
  memory->pins--;
  if (memory->pins == 0 && memory->unmapRequested) Unmap(memory);
  Release(memory);
}

uint8_t* MappedMemory(napi_env env, napi_value value, uint64_t* length) {
  napi_value constructor = nullptr;
  bool isMapping = false;
  napi_get_reference_value(env, GetAddonData(env)->mappingClass, &constructor);
  if (value == nullptr || napi_instanceof(env, value, constructor, &isMapping) != napi_ok || !isMapping) return nullptr;
  void* pointer = nullptr;
  if (napi_unwrap(env, value, &pointer) != napi_ok) return nullptr;
  auto* memory = static_cast<Memory*>(pointer);
  if (memory->unmapRequested) return nullptr;
  *length = memory->length;
  return memory->address;
}

void InitMemory(napi_env env, napi_value exports, AddonData* data) {
  const napi_property_descriptor members[] = {
      {"window", nullptr, MakeWindow, nullptr, nullptr, nullptr, napi_default_method, nullptr},
      {"unmap", nullptr, UnmapMapping, nullptr, nullptr, nullptr, napi_default_method, nullptr},
      {"pin", nullptr, Pin, nullptr, nullptr, nullptr, napi_default_method, nullptr},
      {"unpin", nullptr, Unpin, nullptr, nullptr, nullptr, napi_default_method, nullptr},
      {"length", nullptr, nullptr, Length, nullptr, nullptr, napi_enumerable, nullptr},
      {"mapped", nullptr, nullptr, Mapped, nullptr, nullptr, napi_enumerable, nullptr},
      {"faulted", nullptr, nullptr, Faulted, nullptr, nullptr, napi_enumerable, nullptr},
  };
  napi_value constructor = nullptr;
  napi_define_class(env, "Mapping", NAPI_AUTO_LENGTH, Construct, nullptr, sizeof members / sizeof *members, members,
                    &constructor);
  napi_create_reference(env, constructor, 1, &data->mappingClass);
  Export(env, exports, "map", Map);
  Export(env, exports, "unmapping", CountUnmapping);
  Export(env, exports, "memfdCreate", MemfdCreate);
}

}  // namespace devstate
