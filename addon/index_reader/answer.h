// What the reader says to the daemon that started it (tiers/nvme/probe.ts), in little-endian words of a file:
//   kAnswerHeadWords words: magic, version, found (0, 1), records, bytes of meta, damaged pages, pages, 0;
//   keys of damaged pages; meta (JSON, padded to words); then the records, in the order of RecordOrder.
// The head is whole before the first record is written: it is the verdict, and the daemon goes on with it.
#pragma once

#include "reader.h"

namespace cairn {

constexpr uint32_t kAnswerMagic = 0x42505243;  // "CRPB"
constexpr uint32_t kAnswerVersion = 2;
constexpr uint32_t kAnswerHeadWords = 8;

/// Throws Failure with the errno of a write that failed. nullptr: there was no index.
void writeHead(int file, const IndexContent* content);
/// `order`: indexes of all records.
void writeRecords(int file, const RecordList& records, const uint32_t* order);

}  // namespace cairn
