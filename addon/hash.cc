#include "hash.h"

#include <algorithm>
#include <cstring>

#include <xxhash.h>

#if defined(__x86_64__)
// GCC 12 takes its own _mm512_undefined_epi32 for an uninitialised read (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#endif

namespace cairn {
namespace {

constexpr size_t kStripeBytes = 64;
constexpr size_t kStripesPerBlock = 16;  // (secret 192 − stripe 64) / 8
constexpr size_t kShortBytesMax = 240;   // up to here XXH3 uses other formulas
constexpr size_t kPortableChunkBytes = 64 * 1024;
constexpr size_t kPrefetchBytes = 1024;

Hash128 toHash(XXH128_hash_t hash) { return Hash128{hash.low64, hash.high64}; }

/// Through a stack buffer, so that the source is read once.
Hash128 copyAndHashShort(uint8_t* target, const uint8_t* source, size_t bytes) {
  if (bytes == 0) return toHash(XXH3_128bits("", 0));
  uint8_t staged[kShortBytesMax];
  memcpy(staged, source, bytes);
  memcpy(target, staged, bytes);
  return toHash(XXH3_128bits(staged, bytes));
}

/// Copies a chunk, then hashes the written chunk while it is still in the cache.
Hash128 copyAndHashPortable(uint8_t* target, const uint8_t* source, size_t bytes) {
  XXH3_state_t state;
  XXH3_128bits_reset(&state);
  for (size_t at = 0; at < bytes; at += kPortableChunkBytes) {
    const size_t chunk = std::min(kPortableChunkBytes, bytes - at);
    memcpy(target + at, source + at, chunk);
    XXH3_128bits_update(&state, target + at, chunk);
  }
  return toHash(XXH3_128bits_digest(&state));
}

#if defined(__x86_64__)

/// The last stripe overlaps the one before: both are put together from bytes already loaded.
struct Tail {
  uint8_t bytes[2 * kStripeBytes];
  size_t count;
  const uint8_t* lastStripe() const { return bytes + count; }
};

#define CAIRN_AVX512 __attribute__((target("avx512f"), always_inline)) static inline

CAIRN_AVX512 __m512i accumulate512(__m512i sum, __m512i data, const uint8_t* secret) {
  const __m512i keyed = _mm512_xor_si512(data, _mm512_loadu_si512(secret));
  const __m512i product = _mm512_mul_epu32(keyed, _mm512_srli_epi64(keyed, 32));
  const __m512i swapped = _mm512_shuffle_epi32(data, static_cast<_MM_PERM_ENUM>(0x4e));
  return _mm512_add_epi64(product, _mm512_add_epi64(sum, swapped));
}

CAIRN_AVX512 __m512i scramble512(__m512i sum, const uint8_t* secret) {
  const __m512i prime = _mm512_set1_epi32(static_cast<int>(XXH_PRIME32_1));
  const __m512i mixed = _mm512_xor_si512(sum, _mm512_srli_epi64(sum, 47));
  const __m512i keyed = _mm512_xor_si512(mixed, _mm512_loadu_si512(secret));
  const __m512i low = _mm512_mul_epu32(keyed, prime);
  const __m512i high = _mm512_mul_epu32(_mm512_srli_epi64(keyed, 32), prime);
  return _mm512_add_epi64(low, _mm512_slli_epi64(high, 32));
}

template <bool kStream>
CAIRN_AVX512 void put512(uint8_t* target, __m512i data) {
  if constexpr (kStream) {
    _mm512_stream_si512(reinterpret_cast<__m512i*>(target), data);
  } else {
    _mm512_storeu_si512(target, data);
  }
}

template <bool kStream>
__attribute__((target("avx512f"))) Hash128 fused512(uint8_t* target, const uint8_t* source, size_t bytes) {
  alignas(64) uint64_t sums[8] = XXH3_INIT_ACC;
  const uint8_t* secret = XXH3_kSecret;
  __m512i sum = _mm512_load_si512(sums);
  __m512i data = _mm512_setzero_si512();
  const size_t stripes = (bytes - 1) / kStripeBytes;
  size_t stripe = 0;
  for (; stripe + kStripesPerBlock <= stripes; stripe += kStripesPerBlock) {
    const uint8_t* from = source + stripe * kStripeBytes;
    uint8_t* to = target + stripe * kStripeBytes;
#pragma GCC unroll 16
    for (size_t i = 0; i < kStripesPerBlock; i++) {
      _mm_prefetch(reinterpret_cast<const char*>(from + i * kStripeBytes + kPrefetchBytes), _MM_HINT_T0);
      data = _mm512_loadu_si512(from + i * kStripeBytes);
      put512<kStream>(to + i * kStripeBytes, data);
      sum = accumulate512(sum, data, secret + i * 8);
    }
    sum = scramble512(sum, secret + sizeof(XXH3_kSecret) - kStripeBytes);
  }
  for (size_t i = 0; stripe < stripes; stripe++, i++) {
    data = _mm512_loadu_si512(source + stripe * kStripeBytes);
    put512<kStream>(target + stripe * kStripeBytes, data);
    sum = accumulate512(sum, data, secret + i * 8);
  }
  Tail tail;
  tail.count = bytes - stripes * kStripeBytes;
  _mm512_storeu_si512(tail.bytes, data);
  memcpy(tail.bytes + kStripeBytes, source + stripes * kStripeBytes, tail.count);
  memcpy(target + stripes * kStripeBytes, tail.bytes + kStripeBytes, tail.count);
  const __m512i last = _mm512_loadu_si512(tail.lastStripe());
  sum = accumulate512(sum, last, secret + sizeof(XXH3_kSecret) - kStripeBytes - 7);
  _mm512_store_si512(sums, sum);
  _mm_sfence();
  return toHash(XXH3_finalizeLong_128b(sums, secret, sizeof(XXH3_kSecret), bytes));
}

#define CAIRN_AVX2 __attribute__((target("avx2"), always_inline)) static inline

struct Sums256 {
  __m256i low;
  __m256i high;
};

CAIRN_AVX2 __m256i load256(const uint8_t* from) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
}

CAIRN_AVX2 __m256i accumulate256(__m256i sum, __m256i data, const uint8_t* secret) {
  const __m256i keyed = _mm256_xor_si256(data, load256(secret));
  const __m256i product = _mm256_mul_epu32(keyed, _mm256_srli_epi64(keyed, 32));
  const __m256i swapped = _mm256_shuffle_epi32(data, 0x4e);
  return _mm256_add_epi64(product, _mm256_add_epi64(sum, swapped));
}

CAIRN_AVX2 __m256i scramble256(__m256i sum, const uint8_t* secret) {
  const __m256i prime = _mm256_set1_epi32(static_cast<int>(XXH_PRIME32_1));
  const __m256i mixed = _mm256_xor_si256(sum, _mm256_srli_epi64(sum, 47));
  const __m256i keyed = _mm256_xor_si256(mixed, load256(secret));
  const __m256i low = _mm256_mul_epu32(keyed, prime);
  const __m256i high = _mm256_mul_epu32(_mm256_srli_epi64(keyed, 32), prime);
  return _mm256_add_epi64(low, _mm256_slli_epi64(high, 32));
}

/// One stripe: two loads, two stores, two accumulations.
template <bool kStream>
CAIRN_AVX2 void stripe256(Sums256& sums, Sums256& data, uint8_t* to, const uint8_t* from,
                          const uint8_t* secret) {
  data.low = load256(from);
  data.high = load256(from + 32);
  if constexpr (kStream) {
    _mm256_stream_si256(reinterpret_cast<__m256i*>(to), data.low);
    _mm256_stream_si256(reinterpret_cast<__m256i*>(to + 32), data.high);
  } else {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), data.low);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + 32), data.high);
  }
  sums.low = accumulate256(sums.low, data.low, secret);
  sums.high = accumulate256(sums.high, data.high, secret + 32);
}

template <bool kStream>
__attribute__((target("avx2"))) Hash128 fused256(uint8_t* target, const uint8_t* source, size_t bytes) {
  alignas(64) uint64_t initial[8] = XXH3_INIT_ACC;
  const uint8_t* secret = XXH3_kSecret;
  const uint8_t* scrambleSecret = secret + sizeof(XXH3_kSecret) - kStripeBytes;
  auto* words = reinterpret_cast<uint8_t*>(initial);
  Sums256 sums{load256(words), load256(words + 32)};
  Sums256 data = sums;
  const size_t stripes = (bytes - 1) / kStripeBytes;
  size_t stripe = 0;
  for (; stripe + kStripesPerBlock <= stripes; stripe += kStripesPerBlock) {
    const uint8_t* from = source + stripe * kStripeBytes;
    uint8_t* to = target + stripe * kStripeBytes;
#pragma GCC unroll 16
    for (size_t i = 0; i < kStripesPerBlock; i++) {
      const size_t at = i * kStripeBytes;
      _mm_prefetch(reinterpret_cast<const char*>(from + at + kPrefetchBytes), _MM_HINT_T0);
      stripe256<kStream>(sums, data, to + at, from + at, secret + i * 8);
    }
    sums.low = scramble256(sums.low, scrambleSecret);
    sums.high = scramble256(sums.high, scrambleSecret + 32);
  }
  for (size_t i = 0; stripe < stripes; stripe++, i++) {
    const size_t at = stripe * kStripeBytes;
    stripe256<kStream>(sums, data, target + at, source + at, secret + i * 8);
  }
  Tail tail;
  tail.count = bytes - stripes * kStripeBytes;
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(tail.bytes), data.low);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(tail.bytes + 32), data.high);
  memcpy(tail.bytes + kStripeBytes, source + stripes * kStripeBytes, tail.count);
  memcpy(target + stripes * kStripeBytes, tail.bytes + kStripeBytes, tail.count);
  sums.low = accumulate256(sums.low, load256(tail.lastStripe()), scrambleSecret - 7);
  sums.high = accumulate256(sums.high, load256(tail.lastStripe() + 32), scrambleSecret - 7 + 32);
  _mm256_store_si256(reinterpret_cast<__m256i*>(words), sums.low);
  _mm256_store_si256(reinterpret_cast<__m256i*>(words + 32), sums.high);
  _mm_sfence();
  return toHash(XXH3_finalizeLong_128b(initial, secret, sizeof(XXH3_kSecret), bytes));
}

__attribute__((target("avx2"))) void streamCopy256(uint8_t* target, const uint8_t* source, size_t bytes) {
  size_t at = 0;
  for (; at + 32 <= bytes; at += 32) {
    _mm_prefetch(reinterpret_cast<const char*>(source + at + kPrefetchBytes), _MM_HINT_T0);
    _mm256_stream_si256(reinterpret_cast<__m256i*>(target + at), load256(source + at));
  }
  memcpy(target + at, source + at, bytes - at);
  _mm_sfence();
}

#endif  // __x86_64__

HashPath bestPath() {
  if (hashPathSupported(HashPath::kAvx512)) return HashPath::kAvx512;
  if (hashPathSupported(HashPath::kAvx2)) return HashPath::kAvx2;
  return HashPath::kPortable;
}

const HashPath kBestPath = bestPath();

}  // namespace

bool hashPathSupported(HashPath path) {
  if (path == HashPath::kPortable) return true;
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (path == HashPath::kAvx2) return __builtin_cpu_supports("avx2") != 0;
  return __builtin_cpu_supports("avx512f") != 0;
#else
  return false;
#endif
}

Hash128 copyAndHashBy(HashPath path, uint8_t* target, const uint8_t* source, size_t bytes, Landing landing) {
  if (bytes <= kShortBytesMax) return copyAndHashShort(target, source, bytes);
#if defined(__x86_64__)
  // Non-temporal stores need an aligned target; slots always are, windows nearly always.
  const bool stream = landing == Landing::kMemory && reinterpret_cast<uintptr_t>(target) % kStripeBytes == 0;
  if (path == HashPath::kAvx512) {
    return stream ? fused512<true>(target, source, bytes) : fused512<false>(target, source, bytes);
  }
  if (path == HashPath::kAvx2) {
    return stream ? fused256<true>(target, source, bytes) : fused256<false>(target, source, bytes);
  }
#endif
  static_cast<void>(path);
  static_cast<void>(landing);
  return copyAndHashPortable(target, source, bytes);
}

Hash128 copyAndHash(uint8_t* target, const uint8_t* source, size_t bytes, Landing landing) {
  return copyAndHashBy(kBestPath, target, source, bytes, landing);
}

Hash128 hashOnly(const uint8_t* source, size_t bytes) { return toHash(XXH3_128bits(source, bytes)); }

void streamCopy(uint8_t* target, const uint8_t* source, size_t bytes) {
#if defined(__x86_64__)
  if (hashPathSupported(HashPath::kAvx2) && reinterpret_cast<uintptr_t>(target) % 32 == 0) {
    streamCopy256(target, source, bytes);
    return;
  }
#endif
  memcpy(target, source, bytes);
}

}  // namespace cairn
