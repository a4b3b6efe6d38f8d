// The DRAM pool file: a head with three doubled tables, then slabs. Everything a restart needs stands in
// the file; nothing else does.
//
//   0            superblock table (twice): format, slab bytes, slabs, uuid, clean flag
//   …            slab table (twice): payload bytes and generation base per slab
//   …            namespace table (twice): index, digest, descriptor
//   kHeadBytes   slab 0, slab 1, …; a slab = its slot headers in front, then aligned payloads
//
// A slot number is slab << 18 | index. Geometry is read and changed on the JS thread only; copy threads get
// resolved pointers, and a per-slab count of queued copies keeps a slab mapped while they run.
// The file is locked (flock), ours, mode 0600, and fully allocated, so a full file system is an error at
// open or resize and never a SIGBUS later. Addresses are stable: a large range is reserved up front.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "common.h"
#include "header.h"
#include "table.h"

namespace cairn {

constexpr uint32_t kSlotIndexBits = 18;
constexpr uint32_t kSlotsPerSlabMax = 1u << kSlotIndexBits;
constexpr uint32_t kSlabsMax = 1u << (32 - kSlotIndexBits);
constexpr uint32_t kNamespacesMax = 4096;
constexpr uint32_t kArenaFormat = 1;
constexpr uint32_t kNumaNodesMax = 1024;
constexpr size_t kHeadBytes = 4u << 20;
constexpr size_t kDigestBytes = 16;

/// Slots a slab of slabBytes holds for a payload; 0 when not even one fits.
uint32_t slotsPerSlab(uint64_t slabBytes, uint32_t payloadBytes);

struct ArenaNamespace {
  bool used = false;
  uint64_t seed = 0;
  uint8_t digest[kDigestBytes] = {};
  std::vector<uint8_t> descriptor;
};

struct ArenaSlab {
  uint32_t payloadBytes = 0;
  /// Slots of a newly assigned slab continue from here, so that generations of a reused slot never repeat.
  uint32_t generationBase = 0;
  uint32_t slots = 0;
  uint32_t strideBytes = 0;
  uint64_t payloadOffset = 0;
};

class Arena {
 public:
  struct Options {
    std::string path;
    uint64_t slabBytes;
    uint32_t slabs;
    int numaNode;
    bool hugePages;
    /// Spread pages over these NUMA nodes; empty = no.
    std::vector<uint32_t> interleaveNodes = {};
  };

  /// Throws LOCKED, UNSAFE, FORMAT or an errno name.
  static std::shared_ptr<Arena> open(const Options& options);
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  /// Marks the file clean (keep) or deletes it. The mapping lives until the last user lets go.
  void close(bool keep);
  void resize(uint32_t slabs);

  bool reopened() const { return reopened_; }
  bool clean() const { return clean_; }
  /// interleaveNodes was asked for and the kernel agreed.
  bool numaPolicySet() const { return numaPolicySet_; }
  uint64_t slabBytes() const { return slabBytes_; }
  uint32_t slabs() const { return static_cast<uint32_t>(slabs_.size()); }
  const ArenaSlab& slab(uint32_t index) const { return slabs_[index]; }

  uint32_t assign(uint32_t slab, uint32_t payloadBytes);
  void release(uint32_t slab);
  void putNamespace(uint32_t index, const uint8_t* digest, const uint8_t* descriptor, size_t bytes);
  const std::vector<ArenaNamespace>& namespaces() const { return namespaces_; }

  /// True when the slot exists in an assigned slab.
  bool slotExists(uint32_t slot) const;
  SlotHeader* header(uint32_t slot) const;
  uint8_t* payload(uint32_t slot) const;
  uint8_t* slabBase(uint32_t slab) const { return base_ + kHeadBytes + slab * slabBytes_; }

  /// Queued copies per slab; release and shrink refuse a busy slab.
  std::atomic<uint32_t>& users(uint32_t slab) { return users_[slab]; }
  /// Long-running helpers (scan, pre-touch); close and resize refuse while there are any.
  std::atomic<uint32_t>& helpers() { return helpers_; }
  /// Scans read the tables: nothing that changes them may run beside one.
  std::atomic<uint32_t>& scans() { return scans_; }

 private:
  Arena() = default;
  void openFile(const std::string& path);
  void reserveAddresses();
  void mapHead();
  void mapSlabs(uint32_t from, uint32_t to);
  void create(const Options& options);
  void load();
  void loadSlabs();
  void loadNamespaces();
  void setGeometry(ArenaSlab& slab) const;
  void writeSuperblock(bool clean);
  void writeSlabs();
  void writeNamespaces(const std::vector<ArenaNamespace>& namespaces);
  /// Before pages are allocated: fallocate gives them their place.
  void setNumaPolicy(uint64_t from, uint64_t to);
  void allocateFile(uint64_t from, uint64_t to);
  uint64_t fileBytes(uint32_t slabs) const { return kHeadBytes + uint64_t{slabs} * slabBytes_; }
  void checkIdle(uint32_t slab) const;
  void checkNoHelpers() const;

  std::string path_;
  Descriptor file_;
  uint8_t* base_ = nullptr;
  uint64_t reservedBytes_ = 0;
  uint64_t slabBytes_ = 0;
  int numaNode_ = -1;
  std::vector<uint32_t> interleaveNodes_;
  bool numaPolicySet_ = false;
  bool hugePages_ = false;
  bool reopened_ = false;
  bool clean_ = false;
  uint64_t uuid_[2] = {};
  std::vector<ArenaSlab> slabs_;
  std::vector<ArenaNamespace> namespaces_;
  std::unique_ptr<DoubleTable> superblock_;
  std::unique_ptr<DoubleTable> slabTable_;
  std::unique_ptr<DoubleTable> namespaceTable_;
  std::unique_ptr<std::atomic<uint32_t>[]> users_;
  std::atomic<uint32_t> helpers_{0};
  std::atomic<uint32_t> scans_{0};
};

}  // namespace cairn
