// References that benches compare with, measured natively so that no event loop stands in the way.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace cairn {

/// glibc memcpy between two fresh, pre-touched shared mappings of `bytes`, in blocks: GB/s of each pass.
std::vector<double> benchMemcpyRates(uint64_t bytes, uint64_t blockBytes, uint32_t passes, bool hugePages);

/// Connects, sends `hello` (if any) and reads one frame, then `count` times sends `request` and reads
/// `replyBytes` (0 = one whole frame). Microseconds of each round trip. Blocks.
std::vector<double> benchRoundTripMicroseconds(const std::string& path, const std::vector<uint8_t>& hello,
                                               const std::vector<uint8_t>& request, uint32_t replyBytes,
                                               uint32_t count);

/// Listens, accepts one client and answers every requestBytes with replyBytes until it leaves. Blocks.
void benchEchoServe(const std::string& path, uint32_t requestBytes, uint32_t replyBytes);

}  // namespace cairn
