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

#include <atomic>
#include <cstdio>
#include <iterator>
#include <list>

#include "reaper.h"
#include "sigbus.h"
#include "unique-fd.h"
#include "wrapped.h"

namespace devstate {

/// What one mmap made; given back with the last Memory in it.
class Range {
 public:
  explicit Range(std::shared_ptr<MappedRanges> mapped) : mapped_(std::move(mapped)) {}
  Range(const Range&) = delete;
  Range& operator=(const Range&) = delete;
  ~Range();

  /// 0 or the negative errno.
  int Map(int fd, uint64_t offset, uint64_t length, uint32_t access);
  uint8_t* Address() const { return address_; }
  bool Holds(const uint8_t* bytes, size_t length) const {
    return bytes >= address_ && bytes + length <= address_ + length_;
  }
  bool Faulted() const { return MappingFaulted(guard_); }

 private:
  std::shared_ptr<MappedRanges> mapped_;
  uint8_t* address_ = nullptr;
  size_t length_ = 0;
  int guard_ = -1;
};

namespace {
struct Window;
}

/// All or a part of a range: what a Mapping object, its windows and its pins share.
struct Memory {
  Memory(std::shared_ptr<Range> all, uint8_t* start, size_t size) : range(std::move(all)), address(start), length(size) {}

  void Unmap();

  std::shared_ptr<Range> range;  ///< Empty once it is unmapped.
  uint8_t* address;
  const size_t length;
  uint32_t pins = 0;
  bool unmapRequested = false;
  bool faulted = false;  ///< What is left to say once the range is gone.
  std::list<Window*> windows;
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

/// An ArrayBuffer over a part of the memory, which it keeps until the engine has finalized it.
struct Window {
  explicit Window(std::shared_ptr<Memory> one) : memory(std::move(one)) {
    place = memory->windows.insert(memory->windows.end(), this);
  }
  Window(const Window&) = delete;
  Window& operator=(const Window&) = delete;
  ~Window() { Leave(); }

  void Leave() {
    if (memory == nullptr) return;
    memory->windows.erase(place);
    memory.reset();
  }

  std::shared_ptr<Memory> memory;
  std::list<Window*>::iterator place;
  Napi::Reference<Napi::ArrayBuffer> buffer;  ///< Weak; empty until JavaScript has the buffer.
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

/// Page size of the file behind `fd`: huge pages can only be replaced whole.
size_t PageSizeOf(int fd) {
  struct statfs info;
  if (fstatfs(fd, &info) == 0 && info.f_type == HUGETLBFS_MAGIC) return static_cast<size_t>(info.f_bsize);
  return static_cast<size_t>(sysconf(_SC_PAGESIZE));
}

class Mapping : public Wrapped<Mapping, std::shared_ptr<Memory>> {
 public:
  static constexpr napi_type_tag kTag = {0x6465767374617465, 0x6d617070696e6701};

  explicit Mapping(const Napi::CallbackInfo& info) : Wrapped(info) {}

  static Napi::Value Of(Napi::Env env, std::shared_ptr<Range> range, uint8_t* address, size_t length) {
    auto memory = std::make_shared<Memory>(std::move(range), address, length);
    return Make(env.GetInstanceData<AddonData>()->mappingClass, std::move(memory));
  }

  const Memory& Contents() const { return *given; }

  /// window(offset, length) → ArrayBuffer over that part, 1 byte to 1 GiB.
  Napi::Value MakeWindow(const Napi::CallbackInfo& info);
  /// part(offset, length) → Mapping of a part of the same range, which stays mapped until both are unmapped.
  Napi::Value MakePart(const Napi::CallbackInfo& info);
  /// unmap(): detaches all windows and unmaps, at once or with the last unpin(). May be called again.
  Napi::Value Unmap(const Napi::CallbackInfo& info);
  /// pin(): keeps the memory mapped while asynchronous I/O may touch it.
  Napi::Value Pin(const Napi::CallbackInfo& info);
  Napi::Value Unpin(const Napi::CallbackInfo& info);

  Napi::Value Length(const Napi::CallbackInfo& info) { return Number(info.Env(), static_cast<int64_t>(given->length)); }
  Napi::Value Mapped(const Napi::CallbackInfo& info) {
    return Napi::Boolean::New(info.Env(), given->address != nullptr);
  }
  Napi::Value Faulted(const Napi::CallbackInfo& info) {
    return Napi::Boolean::New(info.Env(), given->range == nullptr ? given->faulted : given->range->Faulted());
  }

 private:
  /// The part that arguments 0 and 1 say: 0 or the negative errno.
  int Part(const Napi::CallbackInfo& info, uint64_t most, uint64_t* offset, uint64_t* length) const;
};

int Mapping::Part(const Napi::CallbackInfo& info, uint64_t most, uint64_t* offset, uint64_t* length) const {
  Args args(info);
  *offset = args.Size(0);
  *length = args.Size(1);
  if (given->unmapRequested) return -EBADF;
  if (*length == 0 || *length > most || *offset > given->length || *length > given->length - *offset) return -EINVAL;
  return 0;
}

Napi::Value Mapping::MakePart(const Napi::CallbackInfo& info) {
  uint64_t offset;
  uint64_t length;
  if (int wrong = Part(info, UINT64_MAX, &offset, &length)) return Number(info.Env(), wrong);
  return Of(info.Env(), given->range, given->address + offset, length);
}

Napi::Value Mapping::MakeWindow(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  uint64_t offset;
  uint64_t length;
  if (int wrong = Part(info, kMaxWindow, &offset, &length)) return Number(env, wrong);
  auto window = std::make_unique<Window>(given);
  auto finalize = [](napi_env, void*, void* hint) { delete static_cast<Window*>(hint); };
  napi_value made = nullptr;
  // Not the library's call: where the engine made the buffer and then fails, as in an environment that is terminated just
  // now, it finalizes the buffer all the same, with data that the library has deleted.
  if (napi_create_external_arraybuffer(env, given->address + offset, length, finalize, window.get(), &made) != napi_ok) {
    window.release()->Leave();
    return Number(env, -ENOMEM);
  }
  Window* kept = window.release();  // The engine's.
  Napi::ArrayBuffer buffer(env, made);
  kept->buffer = Napi::Weak(buffer);
  return buffer;
}

Napi::Value Mapping::Unmap(const Napi::CallbackInfo& info) {
  given->unmapRequested = true;
  // Detaching lets the engine finalize the window, at once or later.
  for (auto next = given->windows.begin(); next != given->windows.end();) {
    Window* window = *next++;
    if (window->buffer.IsEmpty()) continue;
    // Should it throw, the memory stays: unmapped all the same it would be memory of something else next.
    if (auto buffer = window->buffer.Value(); !buffer.IsEmpty()) buffer.Detach();
  }
  if (given->pins == 0) given->Unmap();
  return Number(info.Env(), 0);
}

Napi::Value Mapping::Pin(const Napi::CallbackInfo& info) {
  if (given->unmapRequested) return Number(info.Env(), -EBADF);
  info.Env().GetInstanceData<AddonData>()->pinned.insert(given);
  given->pins++;
  return Number(info.Env(), 0);
}

Napi::Value Mapping::Unpin(const Napi::CallbackInfo& info) {
  if (given->pins == 0) return Number(info.Env(), -EINVAL);
  if (--given->pins == 0) {
    if (given->unmapRequested) given->Unmap();
    info.Env().GetInstanceData<AddonData>()->pinned.erase(given);
  }
  return Number(info.Env(), 0);
}

/// map(fd, offset, length, protection) → Mapping; shared, protection 1 read, 2 write, 4 all of it in memory from now on, as
/// far as this process may lock it. The fd may be closed afterwards.
Napi::Value Map(const Napi::CallbackInfo& info) {
  Args args(info);
  int fd = args.Fd(0);
  uint64_t offset = args.Size(1);
  uint64_t length = args.Size(2);
  uint32_t access = args.Unsigned(3);
  auto mapped = info.Env().GetInstanceData<AddonData>()->mapped;
  auto range = std::make_shared<Range>(mapped);
  if (int wrong = range->Map(fd, offset, length, access)) return Number(info.Env(), wrong);
  uint8_t* address = range->Address();
  (*mapped)[reinterpret_cast<uintptr_t>(address)] = range;
  return Mapping::Of(info.Env(), std::move(range), address, length);
}

/// maxRanges() → ranges that can be mapped at once
Napi::Value CountMaxRanges(const Napi::CallbackInfo& info) { return Number(info.Env(), MaxRanges()); }

/// unmapping() → ranges that were given up and are still mapped
Napi::Value CountUnmapping(const Napi::CallbackInfo& info) { return Number(info.Env(), Unmapping()); }

/// memfdCreate(name) → fd, sealable
Napi::Value MemfdCreate(const Napi::CallbackInfo& info) {
  Args args(info);
  char name[250];
  if (!args.String(0, name, sizeof name)) return Number(info.Env(), -EINVAL);
  return Give(info.Env(), UniqueFd(memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING)));
}

}  // namespace

int Range::Map(int fd, uint64_t offset, uint64_t length, uint32_t access) {
  int protection = ((access & kReadable) != 0 ? PROT_READ : 0) | ((access & kWritable) != 0 ? PROT_WRITE : 0);
  bool resident = (access & kResident) != 0;
  int flags = MAP_SHARED | (resident ? MAP_POPULATE : 0);
  if (rangeCount >= MaxRanges() && !(WaitForUnmap(kWaitForRoomMs) && rangeCount < MaxRanges())) return -ENOMEM;
  void* address;
  do {
    errno = ENOMEM;
    address = mmap(nullptr, length, protection, flags, fd, static_cast<off_t>(offset));
  } while (address == MAP_FAILED && errno == ENOMEM && WaitForUnmap(kWaitForRoomMs));
  if (address == MAP_FAILED) return -errno;
  // Without the right to lock it stays resident unless memory runs short.
  if (resident && mlock(address, length) != 0) errno = 0;
  guard_ = GuardMapping(address, length, PageSizeOf(fd), protection);
  if (guard_ < 0) {
    munmap(address, length);
    return -ENOMEM;
  }
  rangeCount++;
  address_ = static_cast<uint8_t*>(address);
  length_ = length;
  return 0;
}

Range::~Range() {
  if (address_ == nullptr) return;
  UnguardMapping(guard_);
  mapped_->erase(reinterpret_cast<uintptr_t>(address_));
  UnmapLater(address_, length_, &rangeCount);
}

void Memory::Unmap() {
  if (range == nullptr) return;
  faulted = range->Faulted();
  address = nullptr;
  range.reset();
}

RangeHold HoldRangeAt(Napi::Env env, const uint8_t* bytes, size_t length) {
  auto& mapped = *env.GetInstanceData<AddonData>()->mapped;
  auto after = mapped.upper_bound(reinterpret_cast<uintptr_t>(bytes));
  if (after == mapped.begin()) return nullptr;
  auto range = std::prev(after)->second.lock();
  return range != nullptr && range->Holds(bytes, length) ? range : nullptr;
}

uint8_t* MappedMemory(Napi::Value value, uint64_t* length) {
  if (!Mapping::IsOne(value)) return nullptr;
  const Memory& memory = Mapping::Unwrap(value.As<Napi::Object>())->Contents();
  if (memory.unmapRequested) return nullptr;
  *length = memory.length;
  return memory.address;
}

void InitMemory(Napi::Object exports) {
  Napi::Env env = exports.Env();
  constexpr auto kMethod = napi_default_method;
  env.GetInstanceData<AddonData>()->mappingClass = Napi::Persistent(Mapping::DefineClass(
      env, "Mapping",
      {
          Mapping::InstanceMethod<&Mapping::MakeWindow>("window", kMethod),
          Mapping::InstanceMethod<&Mapping::MakePart>("part", kMethod),
          Mapping::InstanceMethod<&Mapping::Unmap>("unmap", kMethod),
          Mapping::InstanceMethod<&Mapping::Pin>("pin", kMethod),
          Mapping::InstanceMethod<&Mapping::Unpin>("unpin", kMethod),
          Mapping::InstanceAccessor<&Mapping::Length>("length", napi_enumerable),
          Mapping::InstanceAccessor<&Mapping::Mapped>("mapped", napi_enumerable),
          Mapping::InstanceAccessor<&Mapping::Faulted>("faulted", napi_enumerable),
      }));
  Export<Map>(exports, "map");
  Export<CountMaxRanges>(exports, "maxRanges");
  Export<CountUnmapping>(exports, "unmapping");
  Export<MemfdCreate>(exports, "memfdCreate");
}

}  // namespace devstate
