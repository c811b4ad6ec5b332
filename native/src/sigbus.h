// SPDX-License-Identifier: Apache-2.0
// Survival of SIGBUS: a peer that shares a memory file can truncate it after we mapped it, and the next touch would kill us.
#pragma once

#include <cstddef>
#include <cstdint>

namespace devstate {

/// Makes [address, address + length) survive SIGBUS: the missing part is replaced by zeroed private memory with protection
/// `protection`. `pageSize` is that of the mapped file. Returns a slot for the calls below, or -1 when all are taken.
int GuardMapping(void* address, size_t length, size_t pageSize, int protection);

/// Whether part of the mapping had to be replaced.
bool MappingFaulted(int slot);

/// Must be called before the range is unmapped.
void UnguardMapping(int slot);

}  // namespace devstate
