// SPDX-License-Identifier: Apache-2.0
// Closes files and unmaps memory on threads of its own, because either may take as long as somebody else decides.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace devstate {

/// Closes `fd` on another thread; the number stays in use until then. `group` says whose it is: the closes of one group
/// occupy few threads, so they cannot keep those of another waiting.
void CloseLater(int fd, uint32_t group);

/// Closes of `group` that have not returned.
uint32_t Closing(uint32_t group);

/// Closes of all groups that have not returned.
uint32_t ClosingOfAll();

/// Unmaps a range on another thread, in slices, and counts `count` down.
void UnmapLater(void* address, size_t length, std::atomic<uint32_t>* count);

/// Ranges that are not unmapped yet.
uint32_t Unmapping();

/// Waits until at least one range more is unmapped, for at most `milliseconds`; false when none is queued, or in vain.
bool WaitForUnmap(unsigned milliseconds);

}  // namespace devstate
