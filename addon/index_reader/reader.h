// Reads the index of one directory of the NVMe tier: an LMDB environment that daemons of any age, other programs and
// failing disks may have written. LMDB maps its file and believes it, so a bad file can end the process (a truncated
// one is a SIGBUS, a page that points beyond the file a SIGSEGV): whoever calls this must be free to die. What can be
// seen without that is seen: the file's length before it is mapped, the order of keys, and every word of every page.
//
// The environment is opened as lmdb-js opens one that is read-only, with LMDB's own sources: the process takes a place
// in lock.mdb, so a daemon at work keeps the pages of this snapshot until they were read. Everything is copied, and the
// environment is closed before the index is returned: nobody who opens it then meets this process in its lock file.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "records.h"

namespace cairn {

/// The key of what is no page: JSON about the whole directory.
constexpr uint32_t kIndexMetaKey = 0xffffffff;

struct IndexContent {
  /// Throws Failure where there is no memory for so many records.
  explicit IndexContent(size_t recordsMax) : records(recordsMax) {}

  /// Sound ones.
  uint32_t pages = 0;
  /// Keys of those that did not verify, ascending.
  std::vector<uint32_t> badPages;
  /// JSON as it stands there; empty: there was none.
  std::string meta;
  /// In order of slots.
  RecordList records;
};

/// There is a file to be read in the folder of an index.
bool indexExists(const std::string& folder);

/// Reads an index that exists. Throws Failure: it is damaged as a whole, or cannot be read.
IndexContent readIndex(const std::string& folder);

}  // namespace cairn
