// Reads the index of one directory in a process of its own, since LMDB maps its file and a bad one ends the process
// that reads it (a truncated file is a SIGBUS, zeroed meta pages are a SIGSEGV). Plain JavaScript: it starts without
// tsx, in a few tens of milliseconds. It only reads, so it may run before the directory is locked.
//
//   node probe.mjs <directory> 3> <file>
//
// Exit code 0: the index was read (or there is none), and the file holds, in little-endian words:
//   HEAD_WORDS words: magic, version, found (0, 1), entries, bytes of meta, damaged pages, pages, 0…
//   keys of damaged pages; meta (JSON, padded to words); then the entries, RECORD_WORDS words each, sorted by depth,
//   then generation descending: the page's entry as it stands there (index-pages.ts; of its first word the parent's
//   position is 0), the parent's key (zero: none), segment << 18 | index of the slot, payload bytes of its class.
// One byte on standard output, as soon as the head is in the file: the verdict stands, the entries follow while they
// are read already. Nothing touches the map any more then.
// Exit code 3: the index is damaged, stderr says why in one line.
import { closeSync, existsSync, fstatSync, openSync, readSync, writeSync } from "node:fs";
import { join } from "node:path";
import { argv, exit, stderr } from "node:process";
import { fileURLToPath } from "node:url";
import { crc32 } from "node:zlib";

export const PROBE_MAGIC = 0x4250_5243; // "CRPB"
export const PROBE_VERSION = 2;
const DAMAGED = 3;
const READY = 1;
const OUTPUT = 3;
const PROBE_HEAD_WORDS = 8;
const RECORD_WORDS = 23;
const RECORDS_PER_WRITE = 8_192;
const META_KEY = 0xffff_ffff;

// The codec's other half is index-pages.ts; a golden file holds both together.
const PAGE_MAGIC = 0x5849_5243;
const PAGE_VERSION = 1;
const PAGE_SLOTS = 32;
const PAGES_PER_SEGMENT = 8_192;
const SLOT_INDEX_BITS = 18;
const HEAD_WORDS = 8;
const ENTRY_WORDS = 13;
const KEY_WORDS = 8;
const CRC_WORD = 5;
const PARENT_NONE = 254;
const PARENT_SPELLED = 255;

// RECORD of probe.ts.
const PARENT_KEY = 13;
const SLOT = 21;
const PAYLOAD_BYTES = 22;

/** Checks a page in `words[at …]` of `count` words that stood under `key`. Its checksum word becomes 0. */
export function pageIsGood(words, at, count, key) {
  if (count < HEAD_WORDS + ENTRY_WORDS) return false;
  const sum = words[at + CRC_WORD];
  words[at + CRC_WORD] = 0;
  if (words[at] !== PAGE_MAGIC || words[at + 1] !== PAGE_VERSION) return false;
  if (words[at + 2] !== key || words[at + 6] !== count) return false;
  const bytes = new Uint8Array(words.buffer, words.byteOffset + at * 4, count * 4);
  return crc32(bytes) === sum;
}

/** Calls `visit(position, entry word)` for each slot of a good page; false when it does not end where it should. */
export function eachEntry(words, at, count, visit) {
  const present = words[at + 4];
  let entry = at + HEAD_WORDS;
  for (let position = 0; position < PAGE_SLOTS; position++) {
    if (((present >>> position) & 1) === 0) continue;
    if (entry + ENTRY_WORDS > at + count) return false;
    visit(position, entry);
    entry += ENTRY_WORDS + (words[entry] >>> 24 === PARENT_SPELLED ? KEY_WORDS : 0);
  }
  return entry === at + count;
}

/** Writes the record of the entry at `entry` of a page at `page` into `into[to …]`. */
export function writeRecord(words, page, entry, position, into, to) {
  const first = words[entry];
  const key = words[page + 2];
  into[to] = first & 0xff_ffff;
  for (let k = 1; k < ENTRY_WORDS; k++) into[to + k] = words[entry + k];
  const parent = first >>> 24;
  if (parent === PARENT_NONE) into.fill(0, to + PARENT_KEY, to + PARENT_KEY + KEY_WORDS);
  else {
    const at = parent === PARENT_SPELLED ? entry + ENTRY_WORDS : entryOf(words, page, parent) + 5;
    for (let k = 0; k < KEY_WORDS; k++) into[to + PARENT_KEY + k] = words[at + k];
  }
  const segment = Math.floor(key / PAGES_PER_SEGMENT);
  const index = (key % PAGES_PER_SEGMENT) * PAGE_SLOTS + position;
  into[to + SLOT] = segment * 2 ** SLOT_INDEX_BITS + index;
  into[to + PAYLOAD_BYTES] = words[page + 3];
}

/** Where the entry of a position begins. */
function entryOf(words, page, position) {
  const present = words[page + 4];
  let entry = page + HEAD_WORDS;
  for (let other = 0; other < position; other++) {
    if (((present >>> other) & 1) === 0) continue;
    entry += ENTRY_WORDS + (words[entry] >>> 24 === PARENT_SPELLED ? KEY_WORDS : 0);
  }
  return entry;
}

function damaged(why) {
  stderr.write(`${why}\n`);
  exit(DAMAGED);
}

/**
 * LMDB maps the file by what its meta pages say. At least one of them must be a meta page, and the file must be as
 * long as the shorter of them asks for. Returns its bytes.
 */
function checkFile(path) {
  const descriptor = openSync(path, "r");
  const metas = [];
  const { size } = fstatSync(descriptor);
  const page = Buffer.alloc(4_096);
  for (const at of [0, 4_096]) {
    page.fill(0);
    readSync(descriptor, page, 0, page.length, at);
    // Behind the page header of 24 bytes: magic, version, address, map size, two trees of 48 bytes, last page.
    if (page.readUInt32LE(24) !== 0xbeef_c0de) continue;
    metas.push({ pageBytes: page.readUInt32LE(48), last: Number(page.readBigUInt64LE(144)) });
  }
  closeSync(descriptor);
  if (metas.length < 1) return damaged("the meta pages of the index are damaged");
  const bytes = Math.min(...metas.map(({ pageBytes, last }) => (last + 1) * pageBytes));
  if (size < bytes) return damaged(`the index file has ${size} of ${bytes} bytes`);
  return size;
}

/** Copies every page out of the map, checking each. `bytes`: of the file, which all pages together do not exceed. */
function readPages(database, bytes) {
  let words = new Uint32Array(Math.ceil(bytes / 4));
  let used = 0;
  let entries = 0;
  const pages = [];
  const bad = [];
  let meta = new Uint8Array(0);
  for (const key of database.getKeys({ start: 0 })) {
    const value = database.getBinaryFast(key);
    if (value === undefined) continue;
    if (key === META_KEY) {
      // lmdb's buffer is longer than its `length` says.
      meta = new Uint8Array(value.subarray(0, value.length));
      continue;
    }
    const count = value.length >>> 2;
    if (used + count > words.length) {
      // The file grew since it was measured.
      const wider = new Uint32Array(Math.max(words.length * 2, used + count));
      wider.set(words.subarray(0, used));
      words = wider;
    }
    new Uint8Array(words.buffer, used * 4, count * 4).set(value.subarray(0, count * 4));
    const good = value.length % 4 === 0 && pageIsGood(words, used, count, key);
    let seen = 0;
    const counted = () => {
      seen += 1;
    };
    if (good && eachEntry(words, used, count, counted)) {
      pages.push(used);
      used += count;
      entries += seen;
    } else bad.push(key);
  }
  return { words, pages, entries, bad, meta };
}

/** Entries in order of depth, then generation descending: (page, position, entry) of each. */
function sortEntries(words, pages, count) {
  const page = new Uint32Array(count);
  const entry = new Uint32Array(count);
  const position = new Uint8Array(count);
  const depths = new Uint32Array(count);
  let deepest = 0;
  let at = 0;
  for (const pageAt of pages) {
    eachEntry(words, pageAt, words[pageAt + 6], (positionAt, entryAt) => {
      const depth = words[entryAt + 1];
      page[at] = pageAt;
      entry[at] = entryAt;
      position[at] = positionAt;
      depths[at] = depth;
      if (depth > deepest) deepest = depth;
      at += 1;
    });
  }
  // Counting sort by depth: ends[d] becomes the end of depth d's run.
  const ends = new Uint32Array(deepest + 2);
  for (let i = 0; i < count; i++) ends[depths[i] + 1] += 1;
  for (let depth = 0; depth <= deepest; depth++) ends[depth + 1] += ends[depth];
  const order = new Uint32Array(count);
  for (let i = 0; i < count; i++) order[ends[depths[i]]++] = i;
  for (let depth = 0; depth <= deepest; depth++) {
    const run = order.subarray(depth === 0 ? 0 : ends[depth - 1], ends[depth]);
    sortByGeneration(words, entry, run);
  }
  return { page, entry, position, order };
}

/** Generation descending; mostly they are all the same. */
function sortByGeneration(words, entry, run) {
  let sorted = true;
  for (let i = 1; i < run.length && sorted; i++) {
    sorted = words[entry[run[i - 1]] + 2] >= words[entry[run[i]] + 2];
  }
  if (!sorted) run.sort((a, b) => words[entry[b] + 2] - words[entry[a] + 2]);
}

function writeAll(bytes) {
  for (let done = 0; done < bytes.length; ) done += writeSync(OUTPUT, bytes, done);
}

function writeHead(found, entries, pages, bad, meta) {
  const metaWords = Math.ceil(meta.length / 4);
  const head = new Uint32Array(PROBE_HEAD_WORDS + bad.length + metaWords);
  head.set([PROBE_MAGIC, PROBE_VERSION, found ? 1 : 0, entries, meta.length, bad.length, pages]);
  head.set(bad, PROBE_HEAD_WORDS);
  const bytes = new Uint8Array(head.buffer);
  bytes.set(meta, (PROBE_HEAD_WORDS + bad.length) * 4);
  writeAll(bytes);
}

async function main(directory) {
  const folder = join(directory, "index");
  const file = join(folder, "data.mdb");
  if (!existsSync(file)) return writeHead(false, 0, 0, [], new Uint8Array(0));
  const bytes = checkFile(file);
  const { open } = await import("lmdb");
  const options = { keyEncoding: "uint32", encoding: "binary", cache: false, compression: false };
  const database = open({ path: folder, readOnly: true, ...options });
  const { words, pages, entries, bad, meta } = readPages(database, bytes);
  if (bad.length > pages.length) damaged(`${bad.length} of ${bad.length + pages.length} pages`);
  const { page, entry, position, order } = sortEntries(words, pages, entries);
  writeHead(true, entries, pages.length, bad, meta);
  writeSync(READY, "h");
  const records = new Uint32Array(RECORDS_PER_WRITE * RECORD_WORDS);
  for (let at = 0; at < entries; ) {
    let filled = 0;
    for (; filled < RECORDS_PER_WRITE && at < entries; filled++, at++) {
      const i = order[at];
      writeRecord(words, page[i], entry[i], position[i], records, filled * RECORD_WORDS);
    }
    writeAll(new Uint8Array(records.buffer, 0, filled * RECORD_WORDS * 4));
  }
  // LMDB's own end of the process is of no use to a reader.
  return exit(0);
}

if (argv[1] === fileURLToPath(import.meta.url)) {
  try {
    await main(argv[2]);
  } catch (error) {
    damaged(String(error));
  }
}
