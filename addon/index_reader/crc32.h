// CRC-32 as zlib, PNG and Node's zlib.crc32 compute it (polynomial 0xedb88320, reflected): the checksum of index pages.
#pragma once

#include <cstddef>
#include <cstdint>

namespace cairn {

/// Sixteen bytes a step, by tables.
uint32_t crc32(const uint8_t* bytes, size_t count);

}  // namespace cairn
