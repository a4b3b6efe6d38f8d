// N-API face of the copy engine: attaches the ledger's record table and turns a batch of item words into
// resolved items, so that copy threads need neither.
#include <algorithm>
#include <cstring>

#include "js_support.h"
#include "populate.h"

namespace cairn::js {
namespace {

napi_value attachLedger(Call& call) {
  Instance& instance = call.instance();
  napi_value layout = call.value(0);
  napi_value records = call.field(layout, "records");
  const auto view = call.typedArray(records, napi_uint32_array, "records");
  Ledger ledger;
  ledger.records = static_cast<const uint32_t*>(view.data);
  ledger.words = view.length;
  ledger.recordWords = call.fieldUint32(layout, "recordWords");
  ledger.keyWord = call.fieldUint32(layout, "keyWord");
  ledger.parentWord = call.fieldUint32(layout, "parentWord");
  ledger.depthWord = call.fieldUint32(layout, "depthWord");
  ledger.depthMask = call.fieldUint32(layout, "depthMask");
  ledger.namespaceWord = call.fieldUint32(layout, "namespaceWord");
  ledger.namespaceMask = call.fieldUint32(layout, "namespaceMask");
  const uint64_t keyEnd = uint64_t{ledger.keyWord} + kKeyBytes / 4;
  if (ledger.recordWords == 0 || keyEnd > ledger.recordWords || ledger.parentWord >= ledger.recordWords ||
      ledger.depthWord >= ledger.recordWords || ledger.namespaceWord >= ledger.recordWords) {
    fail("ARGUMENT", "a field lies outside the record");
  }
  napi_ref reference;
  check(napi_create_reference(call.env, records, 1, &reference), "reference");
  if (instance.ledgerRecords != nullptr) napi_delete_reference(call.env, instance.ledgerRecords);
  instance.ledgerRecords = reference;
  instance.ledger = ledger;
  return call.nothing();
}

/// Memory for whole pages within the words, on a thread of its own, while JS begins to write them from the front. Small
/// steps: each holds up whoever maps or unmaps memory meanwhile.
napi_value touchWords(Call& call) {
  constexpr uintptr_t kPageBytes = 4096;
  static constexpr uintptr_t kStepBytes = 2u << 20;
  Instance& instance = call.instance();
  instance.needRunning();
  const auto view = call.typedArray(call.value(0), napi_uint32_array, "words");
  const uint32_t count = call.uint32(1);
  if (count > view.length) fail("ARGUMENT", "there are not so many words");
  const auto begin = reinterpret_cast<uintptr_t>(view.data);
  const uintptr_t from = roundUp(begin, kPageBytes);
  const uintptr_t to = (begin + count * sizeof(uint32_t)) / kPageBytes * kPageBytes;
  if (from >= to) return call.nothing();
  napi_ref keeps;
  check(napi_create_reference(call.env, call.value(0), 1, &keeps), "reference");
  auto done = std::make_shared<std::atomic<bool>>(false);
  const auto work = [&instance, from, to, done] {
    for (uintptr_t at = from; at < to && !instance.stopHelpers; at += kStepBytes) {
      // What cannot be had now is asked for again by whoever writes it.
      if (populateRange(reinterpret_cast<uint8_t*>(at), std::min(kStepBytes, to - at)) != 0) break;
    }
    done->store(true);
  };
  try {
    instance.addHelper(startThread(work), done, keeps);
  } catch (const Failure&) {
    // Where there is no thread to be had, pages come one by one, as they are written.
    napi_delete_reference(call.env, keeps);
  }
  return call.nothing();
}

const uint32_t* recordOf(const Ledger& ledger, uint32_t block) {
  const uint64_t at = uint64_t{block} * ledger.recordWords;
  if (ledger.records == nullptr || at + ledger.recordWords > ledger.words) {
    fail("ARGUMENT", "a block lies outside the attached ledger");
  }
  return ledger.records + at;
}

/// Copies to and from remote objects, which carry headers.
bool isObject(CopyKind kind) { return kind == CopyKind::kExport || kind == CopyKind::kImport; }

/// The namespace digests that the items name by index, each once.
std::vector<Digest> resolveDigests(const Arena& arena, std::vector<CopyItem>& items) {
  std::vector<Digest> digests;
  std::map<uint32_t, uint32_t> known;
  for (CopyItem& item : items) {
    const auto [at, added] = known.emplace(item.namespaceIndex, static_cast<uint32_t>(digests.size()));
    item.digest = at->second;
    if (!added) continue;
    memcpy(digests.emplace_back().data(), arena.namespaces()[item.namespaceIndex].digest, kDigestBytes);
  }
  return digests;
}

/// Everything the copy thread needs, read from the ledger's record and the arena's tables.
void resolveItem(const Ledger& ledger, const Arena& arena, const Region* region, const CopyBatchOptions& options,
                 const uint32_t* words, CopyItem& item) {
  item.slot = words[0];
  checkSlot(arena, item.slot, options.payloadBytes);
  item.header = arena.header(item.slot);
  item.payload = arena.payload(item.slot);
  item.targetSlot = item.slot;
  item.targetHeader = nullptr;
  item.other = nullptr;
  if (options.kind == CopyKind::kMove) {
    item.targetSlot = words[1];
    checkSlot(arena, item.targetSlot, options.payloadBytes);
    if (item.targetSlot == item.slot) fail("ARGUMENT", "a slot cannot move onto itself");
    item.targetHeader = arena.header(item.targetSlot);
    item.other = arena.payload(item.targetSlot);
  } else if (region != nullptr) {
    const uint64_t header = isObject(options.kind) ? kDiskHeaderBytes : 0;
    item.other = itemRange(*region, words, header + options.payloadBytes);
  }
  item.generation = words[4];
  resolveName(ledger, arena, words[3], item);
}

/// The data key of a batch that is sealed or opened, nullptr when it names none.
std::unique_ptr<SealKey> sealKey(const Call& call, napi_value object) {
  napi_valuetype type = napi_undefined;
  napi_value given = call.field(object, "key");
  check(napi_typeof(call.env, given, &type), "typeof");
  if (type == napi_undefined) return nullptr;
  const Call::Bytes bytes = call.toBytes(given, "key");
  const Call::Bytes id = call.toBytes(call.field(object, "keyId"), "keyId");
  if (bytes.length != kSealKeyBytes) fail("ARGUMENT", "key must have 32 bytes");
  if (id.length != kSealKeyIdBytes) fail("ARGUMENT", "keyId must have 16 bytes");
  if (!sealingAvailable()) fail("NO_CIPHER", "this node binary exports no AES-256-GCM");
  auto key = std::make_unique<SealKey>();
  memcpy(key->bytes, bytes.data, kSealKeyBytes);
  memcpy(key->id, id.data, kSealKeyIdBytes);
  return key;
}

napi_value copySubmit(Call& call) {
  Instance& instance = call.instance();
  instance.needRunning();
  napi_value object = call.value(0);
  const auto options = batchOptions<CopyBatchOptions>(call, object, 6);
  const std::shared_ptr<Arena> arena = instance.arena(call.fieldUint32(object, "arena"));
  const BatchItems given = batchItems(call);
  std::shared_ptr<Region> region;
  if (options.kind != CopyKind::kMove && options.kind != CopyKind::kVerify) region = batchRegion(call, object);
  std::vector<CopyItem> items = instance.engine->recycledItems();
  items.resize(given.count);
  for (uint32_t i = 0; i < given.count; i++) {
    resolveItem(instance.ledger, *arena, region.get(), options, given.at(i), items[i]);
  }
  std::vector<Digest> digests;
  std::unique_ptr<SealKey> key;
  if (isObject(options.kind)) {
    digests = resolveDigests(*arena, items);
    key = sealKey(call, object);
  }
  instance.engine->submit(options, arena, std::move(region), std::move(items), std::move(digests), std::move(key));
  return call.nothing();
}

napi_value sealing(Call& call) { return call.boolean(sealingAvailable(), nullptr); }

napi_value copyCancel(Call& call) {
  call.instance().needRunning();
  call.instance().engine->cancel(call.uint32(0));
  return call.nothing();
}

}  // namespace

void checkSlot(const Arena& arena, uint32_t slot, uint32_t payloadBytes) {
  if (!arena.slotExists(slot)) fail("ARGUMENT", "no such slot: " + std::to_string(slot));
  if (arena.slab(slot >> kSlotIndexBits).payloadBytes < payloadBytes) {
    fail("ARGUMENT", "slot " + std::to_string(slot) + " is smaller than payloadBytes");
  }
}

void resolveName(const Ledger& ledger, const Arena& arena, uint32_t block, BlockName& name) {
  const uint32_t* record = recordOf(ledger, block);
  name.namespaceIndex = record[ledger.namespaceWord] & ledger.namespaceMask;
  name.depth = record[ledger.depthWord] & ledger.depthMask;
  if (name.namespaceIndex >= kNamespacesMax || !arena.namespaces()[name.namespaceIndex].used) {
    fail("ARGUMENT", "namespace " + std::to_string(name.namespaceIndex) + " was not put into the arena");
  }
  name.seed = arena.namespaces()[name.namespaceIndex].seed;
  memcpy(name.key, record + ledger.keyWord, kKeyBytes);
  const uint32_t parent = record[ledger.parentWord];
  if (parent == UINT32_MAX) {
    memset(name.parentKey, 0, kKeyBytes);
  } else {
    memcpy(name.parentKey, recordOf(ledger, parent) + ledger.keyWord, kKeyBytes);
  }
}

void addCopyMethods(napi_env env, napi_value exports) {
  addMethod(env, exports, "attachLedger", entry<attachLedger>);
  addMethod(env, exports, "touchWords", entry<touchWords>);
  addMethod(env, exports, "copySubmit", entry<copySubmit>);
  addMethod(env, exports, "copyCancel", entry<copyCancel>);
  addMethod(env, exports, "sealing", entry<sealing>);
}

}  // namespace cairn::js
