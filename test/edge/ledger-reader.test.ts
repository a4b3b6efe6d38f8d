import { expect, test } from "vitest";
import { openLedgerReader, namespaceTable } from "../../src/edge/ledger-reader.ts";
import { Ledger } from "../../src/ledger/ledger.ts";
import { TIER } from "../../src/ledger/types.ts";
import { LruPolicy } from "../../src/policy/lru.ts";

const KEY_WORDS = 8;

function ledgerWith(logEntries: number): Ledger {
  return new Ledger(
    {
      blocksMax: 64,
      namespacesMax: 4,
      tenantsMax: 2,
      tiers: [
        {
          slabs: 1,
          slotsPerSlab: () => 32,
          assignSlab: () => true,
          releaseSlab: () => undefined,
          invalidate: () => undefined,
          blocksMax: 0,
          highWatermark: 1,
          lowWatermark: 1,
        },
        undefined,
      ],
      holesMax: 8,
      splitSamplesMax: 8,
      logEntries,
      observer: { settled: () => undefined, leaseReduced: () => undefined },
    },
    new LruPolicy(),
  );
}

function key(first: number, last: number): Uint8Array {
  const bytes = new Uint8Array(32).fill(first);
  bytes.fill(last, 24);
  return bytes;
}

/** Stores a one-block chain and makes it visible. */
function store(ledger: Ledger, namespace: number, bytes: Uint8Array): void {
  const words = new Uint32Array(new Uint8Array(bytes).buffer);
  const blocks = new Uint32Array(1);
  ledger.reserve(namespace, 0, words, 0, 0, 1, 0, new Uint8Array(1), blocks);
  ledger.fillStart(blocks[0]!, TIER.DRAM, 0);
  ledger.fillEnd(blocks[0]!, TIER.DRAM, 0, true);
  ledger.flush();
}

const CHAINED = { keyWords: KEY_WORDS, shards: 1, chained: true, payloadBytes: 64, tenant: 0 };

function setUp(logEntries = 64) {
  const ledger = ledgerWith(logEntries);
  const keyWords = namespaceTable(4);
  for (const _ of [0, 1]) keyWords[ledger.addNamespace(CHAINED)] = KEY_WORDS;
  const reader = openLedgerReader({ view: ledger.share(), keyWords });
  if (reader === undefined) throw new Error("a shared ledger opens a reader");
  return { ledger, reader };
}

test("a full key is found in its namespace, byte for byte as it was stored", () => {
  const { ledger, reader } = setUp();
  const bytes = Uint8Array.from({ length: 32 }, (_, index) => index * 7);
  store(ledger, 1, bytes);
  const hex = Buffer.from(bytes).toString("hex");
  expect(reader.locate(bytes)).toEqual([{ namespace: 1, key: hex, depth: 1, tiers: ["dram"] }]);
  expect(reader.locate(key(9, 9))).toEqual([]);
  ledger.audit();
});

test("the last eight bytes find every block that ends in them, in all namespaces", () => {
  const { ledger, reader } = setUp();
  store(ledger, 0, key(1, 5));
  store(ledger, 0, key(2, 5));
  store(ledger, 1, key(3, 5));
  store(ledger, 1, key(3, 6));
  const found = reader.locate(new Uint8Array(8).fill(5));
  const places = found.map(({ namespace, key: hex }) => `${namespace} ${hex.slice(0, 2)}`);
  expect(places.toSorted()).toEqual(["0 01", "0 02", "1 03"]);
});

test("a key of a length that no namespace uses is found nowhere", () => {
  const { ledger, reader } = setUp();
  store(ledger, 0, key(1, 5));
  expect(reader.locate(new Uint8Array(16).fill(5))).toEqual([]);
});

test("the log tells what became visible since the head, in order", () => {
  const { ledger, reader } = setUp();
  store(ledger, 0, key(1, 1));
  const head = reader.head();
  store(ledger, 0, key(2, 2));
  store(ledger, 1, key(3, 3));
  const { events, next, lost } = reader.read(head, 100);
  expect(events.map(({ kind, namespace, tier }) => `${kind} ${namespace} ${tier}`)).toEqual([
    "stored 0 dram",
    "stored 1 dram",
  ]);
  expect(events[0]?.key).toBe(Buffer.from(key(2, 2)).toString("hex"));
  expect(lost).toBe(0);
  expect(reader.read(next, 100)).toEqual({ events: [], next, lost: 0 });
});

test("a reader that was lapped learns how much it lost and goes on from now", () => {
  const { ledger, reader } = setUp(4);
  const head = reader.head();
  // The smallest log holds twice LOG_UNPUBLISHED_MAX entries.
  for (let index = 1; index <= 200; index++) store(ledger, 0, key(index, index));
  const { events, next, lost } = reader.read(head, 100);
  expect(events).toEqual([]);
  // Two hundred stored, and those removed to make room for them.
  expect(lost).toBeGreaterThan(200);
  expect(lost).toBe(reader.head() - head);
  store(ledger, 0, key(201, 201));
  const after = reader.read(next, 100);
  expect(after.lost).toBe(0);
  expect(after.events.map(({ kind }) => kind)).toContain("stored");
});

test("without a ledger there is no reader", () => {
  expect(openLedgerReader(null)).toBeUndefined();
});
