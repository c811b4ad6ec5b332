// SPDX-License-Identifier: Apache-2.0
// CRC-32C (Castagnoli; RFC 3720 appendix B.4), reflected, initial value and final xor 0xffffffff.
//
// The instruction has a latency of three cycles and a throughput of one, so three neighbouring blocks are worked on at
// once and joined: the CRC of A|B is shift(crc(A), |B|) ^ crc(B), where shift() appends zero bytes. Appending a fixed number
// of zeros is linear in the CRC, hence four tables of 256 words. Without the instruction: eight tables, eight bytes a step.
//
// With carry-less multiplication on 512 bits, long inputs are folded: 256 bytes and the 256 behind them become 256 bytes
// of the same remainder, again and again; the CRC of the last 256 is that of all.
#include <cstring>

#include "support.h"

#if defined(__x86_64__)
#include <immintrin.h>
#define FOLDING_TARGET __attribute__((target("avx512f,vpclmulqdq")))
#define HARDWARE_TARGET __attribute__((target("sse4.2")))
#elif defined(__aarch64__)
#include <arm_acle.h>
#include <asm/hwcap.h>
#include <sys/auxv.h>
#define HARDWARE_TARGET __attribute__((target("+crc")))
#endif

namespace devstate {
namespace {

constexpr uint32_t kPolynomial = 0x82f63b78;  // 0x1edc6f41 reflected

uint64_t Load64(const uint8_t* data) {
  uint64_t word;
  memcpy(&word, data, sizeof word);
  return word;
}

/// table[k][b]: the CRC of byte b followed by k zero bytes.
struct ByteTables {
  uint32_t table[8][256];

  ByteTables() {
    for (uint32_t byte = 0; byte < 256; byte++) {
      uint32_t crc = byte;
      for (int bit = 0; bit < 8; bit++) crc = (crc >> 1) ^ ((crc & 1) != 0 ? kPolynomial : 0);
      table[0][byte] = crc;
    }
    for (int zeros = 1; zeros < 8; zeros++) {
      for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t crc = table[zeros - 1][byte];
        table[zeros][byte] = (crc >> 8) ^ table[0][crc & 0xff];
      }
    }
  }
};

const ByteTables& Tables() {
  static const ByteTables tables;
  return tables;
}

uint32_t Portable(uint32_t crc, const uint8_t* data, size_t length) {
  const auto& t = Tables().table;
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
  for (; length >= 8; data += 8, length -= 8) {
    uint64_t word = Load64(data) ^ crc;
    crc = t[7][word & 0xff] ^ t[6][(word >> 8) & 0xff] ^ t[5][(word >> 16) & 0xff] ^ t[4][(word >> 24) & 0xff] ^
          t[3][(word >> 32) & 0xff] ^ t[2][(word >> 40) & 0xff] ^ t[1][(word >> 48) & 0xff] ^ t[0][word >> 56];
  }
#endif
  for (; length > 0; data++, length--) crc = (crc >> 8) ^ t[0][(crc ^ *data) & 0xff];
  return crc;
}

#ifdef HARDWARE_TARGET

/// Appends a fixed number of zero bytes to a CRC.
class ZeroShift {
 public:
  explicit ZeroShift(size_t zeros) {
    const auto& byte = Tables().table[0];
    uint32_t column[32];  // The image of each bit.
    for (int bit = 0; bit < 32; bit++) {
      uint32_t crc = uint32_t{1} << bit;
      for (size_t i = 0; i < zeros; i++) crc = (crc >> 8) ^ byte[crc & 0xff];
      column[bit] = crc;
    }
    for (int part = 0; part < 4; part++) {
      for (uint32_t value = 0; value < 256; value++) {
        uint32_t crc = 0;
        for (int bit = 0; bit < 8; bit++) {
          if ((value >> bit & 1) != 0) crc ^= column[part * 8 + bit];
        }
        table_[part][value] = crc;
      }
    }
  }

  uint32_t operator()(uint32_t crc) const {
    return table_[0][crc & 0xff] ^ table_[1][(crc >> 8) & 0xff] ^ table_[2][(crc >> 16) & 0xff] ^ table_[3][crc >> 24];
  }

 private:
  uint32_t table_[4][256];
};

#if defined(__x86_64__)
HARDWARE_TARGET inline uint64_t Step64(uint64_t crc, uint64_t word) { return _mm_crc32_u64(crc, word); }
HARDWARE_TARGET inline uint32_t Step8(uint32_t crc, uint8_t byte) { return _mm_crc32_u8(crc, byte); }
bool HasInstruction() { return __builtin_cpu_supports("sse4.2"); }
#else
HARDWARE_TARGET inline uint64_t Step64(uint64_t crc, uint64_t word) {
  return __crc32cd(static_cast<uint32_t>(crc), word);
}
HARDWARE_TARGET inline uint32_t Step8(uint32_t crc, uint8_t byte) { return __crc32cb(crc, byte); }
bool HasInstruction() { return (getauxval(AT_HWCAP) & HWCAP_CRC32) != 0; }
#endif

constexpr size_t kLong = 4096;
constexpr size_t kShort = 256;

/// Three blocks of `block` bytes at a time, as long as there are that many.
HARDWARE_TARGET uint32_t ThreeWay(uint32_t crc, const uint8_t** data, size_t* length, size_t block,
                                  const ZeroShift& shift) {
  for (; *length >= 3 * block; *data += 3 * block, *length -= 3 * block) {
    const uint8_t* at = *data;
    uint64_t first = crc;
    uint64_t second = 0;
    uint64_t third = 0;
    for (const uint8_t* end = at + block; at < end; at += 8) {
      first = Step64(first, Load64(at));
      second = Step64(second, Load64(at + block));
      third = Step64(third, Load64(at + 2 * block));
    }
    crc = shift(static_cast<uint32_t>(first)) ^ static_cast<uint32_t>(second);
    crc = shift(crc) ^ static_cast<uint32_t>(third);
  }
  return crc;
}

HARDWARE_TARGET uint32_t Hardware(uint32_t crc, const uint8_t* data, size_t length) {
  static const ZeroShift shiftLong(kLong);
  static const ZeroShift shiftShort(kShort);
  crc = ThreeWay(crc, &data, &length, kLong, shiftLong);
  crc = ThreeWay(crc, &data, &length, kShort, shiftShort);
  uint64_t wide = crc;
  for (; length >= 8; data += 8, length -= 8) wide = Step64(wide, Load64(data));
  crc = static_cast<uint32_t>(wide);
  for (; length > 0; data++, length--) crc = Step8(crc, *data);
  return crc;
}

#ifdef FOLDING_TARGET

/// Below this the instruction alone is as fast.
constexpr size_t kFolded = 2048;

/// x^n modulo the polynomial, as a factor for bit-reflected operands: those are one bit further left.
uint64_t PowerOfX(unsigned n) {
  uint32_t value = 0x80000000;
  for (; n > 0; n--) value = (value >> 1) ^ ((value & 1) != 0 ? kPolynomial : 0);
  return static_cast<uint64_t>(value) << 1;
}

FOLDING_TARGET uint32_t Folding(uint32_t crc, const uint8_t* data, size_t length) {
  if (length < kFolded) return Hardware(crc, data, length);
  // The low and the high half of each 128 bits move on by 256 bytes.
  static const uint64_t low = PowerOfX(2048 + 32);
  static const uint64_t high = PowerOfX(2048 - 32);
  const __m512i factors = _mm512_broadcast_i32x4(_mm_set_epi64x(high, low));
  __m512i part[4];
  for (int i = 0; i < 4; i++) part[i] = _mm512_loadu_si512(data + 64 * i);
  part[0] = _mm512_xor_si512(part[0], _mm512_zextsi128_si512(_mm_cvtsi32_si128(static_cast<int>(crc))));
  for (data += 256, length -= 256; length >= 256; data += 256, length -= 256) {
    for (int i = 0; i < 4; i++) {
      const __m512i next = _mm512_loadu_si512(data + 64 * i);
      const __m512i lower = _mm512_clmulepi64_epi128(part[i], factors, 0x00);
      const __m512i upper = _mm512_clmulepi64_epi128(part[i], factors, 0x11);
      part[i] = _mm512_ternarylogic_epi64(lower, upper, next, 0x96);  // xor of the three
    }
  }
  uint8_t last[256];
  for (int i = 0; i < 4; i++) _mm512_storeu_si512(last + 64 * i, part[i]);
  return Hardware(Hardware(0, last, sizeof last), data, length);
}

bool HasFolding() { return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("vpclmulqdq"); }

#endif

#else
bool HasInstruction() { return false; }
uint32_t Hardware(uint32_t crc, const uint8_t* data, size_t length) { return Portable(crc, data, length); }
#endif

using Update = uint32_t (*)(uint32_t, const uint8_t*, size_t);

Update Fastest() {
  if (!HasInstruction()) return Portable;
#ifdef FOLDING_TARGET
  if (HasFolding()) return Folding;
#endif
  return Hardware;
}

Napi::Value Compute(const Napi::CallbackInfo& info, Update update) {
  Args args(info);
  Bytes bytes = args.Uint8Array(0);
  uint64_t offset = args.Size(1);
  uint64_t length = args.Size(2);
  uint32_t seed = args.Unsigned(3);
  if (offset > bytes.length || length > bytes.length - offset) {
    auto error = Napi::RangeError::New(info.Env(), "offset and length must lie within the bytes");
    error.Set("code", "ERR_OUT_OF_RANGE");
    throw error;
  }
  return Number(info.Env(), ~update(~seed, bytes.data + offset, length));
}

/// crc32c(bytes, offset, length, seed) → CRC; the seed is the CRC of what came before, 0 at the start.
Napi::Value Crc32c(const Napi::CallbackInfo& info) {
  static const Update update = Fastest();
  return Compute(info, update);
}

/// crc32cPortable(...): the same without the instruction, so that a test can compare the two.
Napi::Value Crc32cPortable(const Napi::CallbackInfo& info) { return Compute(info, Portable); }

}  // namespace

void InitCrc32c(Napi::Object exports) {
  Export<Crc32c>(exports, "crc32c");
  Export<Crc32cPortable>(exports, "crc32cPortable");
}

}  // namespace devstate
