import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { Job } from "../../src/engine-api/jobs.ts";
import { Leases } from "../../src/engine-api/leases.ts";
import type { Namespace } from "../../src/engine-api/namespaces.ts";
import { Region, Windows } from "../../src/engine-api/regions.ts";
import { Connection, Instance, NamespaceView, Sessions } from "../../src/engine-api/sessions.ts";
import { Waiters } from "../../src/engine-api/waiters.ts";
import { NO_BLOCK } from "../../src/ledger/types.ts";
import { descriptor } from "../e2e/support.ts";

const namespace: Namespace = {
  index: 0,
  digest: new Uint8Array(16),
  digestHex: "",
  descriptor: descriptor(),
  tenant: "default",
  variant: "",
  keyBytes: 32,
  keyWords: 8,
  rowBytes: 100,
  shards: 2,
  blockBytes: 200,
  recovered: false,
  unprovenWriter: 0,
};

describe("waiters", () => {
  it("agree with a plain list under any sequence of add, remove and settle", () => {
    const jobs = [new Job(), new Job(), new Job()];
    const step = fc.record({
      what: fc.constantFrom("add", "remove", "settle"),
      block: fc.nat(4),
      job: fc.nat(2),
      position: fc.nat(3),
    });
    fc.assert(
      fc.property(fc.array(step, { maxLength: 200 }), (steps) => {
        const waiters = new Waiters();
        let model: { block: number; job: number; position: number }[] = [];
        for (const { what, block, job, position } of steps) {
          const same = (each: (typeof model)[number]): boolean =>
            each.block === block && each.job === job && each.position === position;
          if (what === "add" && !model.some(same)) {
            const first = !model.some((each) => each.block === block);
            expect(waiters.add(block, jobs[job]!, position)).toBe(first);
            model.push({ block, job, position });
          } else if (what === "remove") {
            waiters.remove(block, jobs[job]!, position);
            model = model.filter((each) => !same(each));
          } else if (what === "settle") {
            const told: string[] = [];
            waiters.settle(block, true, (each, at) => told.push(`${jobs.indexOf(each)}:${at}`));
            const expected = model.filter((each) => each.block === block);
            expect(told.sort()).toEqual(
              expected.map((each) => `${each.job}:${each.position}`).sort(),
            );
            model = model.filter((each) => each.block !== block);
          }
          expect(waiters.size).toBe(new Set(model.map((each) => each.block)).size);
        }
      }),
    );
  });
});

function parentOfBlock(block: number): number {
  return block === 0 ? NO_BLOCK : (block - 1) >>> 1;
}

/** Blocks from the root down to this one. */
function pathTo(block: number): number[] {
  const path: number[] = [];
  for (let at = block; at !== NO_BLOCK; at = parentOfBlock(at)) path.unshift(at);
  return path;
}

/** Keys of a path, 8 words each. */
function keysTo(block: number): Uint32Array {
  return Uint32Array.from(pathTo(block).flatMap((each) => new Array(8).fill(each + 1) as number[]));
}

describe("leases", () => {
  function table() {
    const open = new Set<number>();
    const leases = new Leases({
      leaseOpen: (lease) => void open.add(lease),
      leaseClose: (lease) => void open.delete(lease),
      leaseFollow: () => undefined,
      leaseBlock: () => 0,
      // The blocks are a binary tree.
      parentOf: parentOfBlock,
    });
    const connection = new Connection(1, 1, 1, "default");
    const instance = new Instance(1, "k", connection, "e", "x", [namespace]);
    connection.instance = instance;
    return { open, leases, connection, instance };
  }

  it("are one for each request id, and what they pin adds up", () => {
    const { open, leases, connection, instance } = table();
    const words = new Uint32Array(40);
    const first = leases.request(connection, 7, 10);
    leases.open(first, namespace, 3, 5, words, 0, undefined);
    const old = first.id;
    expect(instance.pinnedBytes).toBe(1_000);
    const again = leases.request(connection, 7, 10);
    leases.open(again, namespace, 3, 2, words, 0, undefined);
    expect(again).toBe(first);
    expect(open.has(old)).toBe(false);
    expect(() => leases.require(instance, old)).toThrow("no such lease");
    leases.follow(again, 4, 6);
    expect(instance.pinnedBytes).toBe(1_200);
    leases.reduced(again.id, 1);
    expect(instance.pinnedBytes).toBe(200);
    expect(leases.endRequest(instance, 7)).toBe(true);
    expect(leases.endRequest(instance, 7)).toBe(false);
    expect([instance.pinnedBytes, instance.leaseCount, leases.size, open.size]).toEqual([
      0, 0, 0, 0,
    ]);
  });

  it("count each block that they share at least once, and a shared prefix no more than once", () => {
    const step = fc.record({
      what: fc.constantFrom("open", "lie", "follow", "reduce", "end"),
      request: fc.nat(7),
      block: fc.nat(254),
      other: fc.nat(254),
    });
    fc.assert(
      fc.property(fc.array(step, { maxLength: 100 }), (steps) => {
        const { leases, connection, instance } = table();
        const held = new Map<number, number>();
        for (const { what, request, block, other } of steps) {
          const path = pathTo(block);
          const lease = instance.requests.get(request);
          if (what === "open" || what === "lie") {
            const keys = keysTo(what === "lie" ? other : block);
            if (keys.length < path.length * 8) continue;
            const entry = leases.request(connection, request, 100);
            const pin = leases.shared(instance, namespace, block, path.length, keys, 0);
            leases.open(entry, namespace, block, path.length, keys, 0, pin);
            held.set(request, block);
          } else if (lease === undefined) {
            continue;
          } else if (what === "follow") {
            if (path.length <= lease.depth) continue;
            leases.follow(lease, block, path.length);
            held.set(request, block);
          } else if (what === "reduce") {
            const rest = pathTo(held.get(request)!);
            leases.reduced(lease.id, rest.length - 1);
            if (rest.length > 1) held.set(request, rest.at(-2)!);
            else leases.endRequest(instance, request);
            if (rest.length === 1) held.delete(request);
          } else {
            leases.endRequest(instance, request);
            held.delete(request);
          }
          const paths = [...held.values()].map(pathTo);
          const distinct = new Set(paths.flat()).size;
          expect(instance.pinnedBytes).toBeGreaterThanOrEqual(distinct * namespace.blockBytes);
          const sum = paths.reduce((total, each) => total + each.length, 0);
          expect(instance.pinnedBytes).toBeLessThanOrEqual(sum * namespace.blockBytes);
          expect(leases.pinnedBytes).toBe(instance.pinnedBytes);
        }
        for (const request of held.keys()) leases.endRequest(instance, request);
        expect([instance.pinnedBytes, leases.pinnedBytes]).toEqual([0, 0]);
      }),
    );
  });

  it("on one prefix count it once, and each what it stored on top", () => {
    const { leases, connection, instance } = table();
    const prefix = 62;
    const blocks = pathTo(prefix).length;
    for (let request = 0; request < 100; request++) {
      const entry = leases.request(connection, request, 100);
      const keys = keysTo(prefix);
      const pin = leases.shared(instance, namespace, prefix, blocks, keys, 0);
      leases.open(entry, namespace, prefix, blocks, keys, 0, pin);
      expect(instance.pinnedBytes).toBe((blocks + request) * namespace.blockBytes);
      leases.follow(entry, 2 * prefix + 1 + (request % 2), blocks + 1);
    }
    expect(instance.pinnedBytes).toBe((blocks + 100) * namespace.blockBytes);
  });

  it("are not another instance's, and not more than allowed", () => {
    const { leases, connection } = table();
    const lease = leases.request(connection, 1, 1);
    leases.open(lease, namespace, 3, 1, new Uint32Array(8), 0, undefined);
    const stranger = new Instance(2, "s", connection, "s", "x", [namespace]);
    expect(() => leases.require(stranger, lease.id)).toThrow("no such lease");
    expect(() => leases.request(connection, 2, 1)).toThrow("leasesPerInstanceMax");
  });

  it("keep a chain that grows, is cut back and is forgotten", () => {
    const { leases, connection, instance } = table();
    const request = leases.request(connection, 1, 10);
    const words = Uint32Array.from({ length: 800 }, (_, index) => index);
    leases.extendChain(request, 8, 0, words, 0, 50);
    leases.extendChain(request, 8, 50, words, 400, 50);
    expect(request.chainKeys).toBe(100);
    expect(request.chain[799]).toBe(799);
    leases.extendChain(request, 8, 10, words, 0, 1);
    expect(request.chainKeys).toBe(11);
    expect(request.chain[80]).toBe(0);
    expect(() => leases.extendChain(request, 8, 12, words, 0, 1)).toThrow("not held");
    expect(instance.chainBytes).toBeGreaterThan(0);
    leases.end(request);
    expect(instance.chainBytes).toBe(0);
  });
});

describe("regions", () => {
  const request = {
    kind: "window" as const,
    make: "client" as const,
    namespace: 1,
    sizeBytes: 4_096,
    offsetBytes: 64,
    strideBytes: 128,
    blocks: 8,
    proof: false,
  };
  const view = new NamespaceView(1, namespace);

  it("lend a row once, and all rows of a call or none", () => {
    const region = new Region(1, view, request, 9, new Windows(), "memfd");
    expect(region.rangeAt(3)).toBe(64 + 3 * 128);
    region.take(Uint32Array.of(0, 1, 2), 0, 3, 1);
    expect(() => region.take(Uint32Array.of(3, 4, 1), 0, 3, 1)).toThrow("row 1");
    expect(() => region.take(Uint32Array.of(3, 8), 0, 2, 1)).toThrow("row 8 of 8");
    region.take(Uint32Array.of(9, 3, 9, 4), 1, 2, 2);
    region.give(1);
    region.take(Uint32Array.of(1), 0, 1, 1);
    expect(() => region.give(7)).toThrow("was taken");
  });

  it("of one memfd lend no byte twice, whatever their offsets and strides", () => {
    const geometry = fc.record({
      offsetBytes: fc.nat(300),
      strideBytes: fc.integer({ min: 100, max: 260 }),
      blocks: fc.integer({ min: 1, max: 12 }),
    });
    const step = fc.record({ region: fc.nat(2), row: fc.nat(11) });
    fc.assert(
      fc.property(fc.tuple(geometry, geometry, geometry), fc.array(step), (shapes, steps) => {
        const windows = new Windows();
        const regions = shapes.map(
          (shape, id) => new Region(id, view, { ...request, ...shape }, 9, windows, "memfd"),
        );
        const owners = new Map<number, string>();
        for (const { region: at, row } of steps) {
          const region = regions[at]!;
          if (row >= region.blocks) continue;
          const name = `${at}:${row}`;
          const bytes = Array.from({ length: 100 }, (_, i) => region.rangeAt(row) + i);
          if (owners.get(bytes[0]!) === name) {
            region.give(row);
            for (const byte of bytes) owners.delete(byte);
            continue;
          }
          const free = bytes.every((byte) => !owners.has(byte));
          expect(region.isFree(row)).toBe(free);
          if (free) {
            region.take(Uint32Array.of(row), 0, 1, 1);
            for (const byte of bytes) owners.set(byte, name);
          } else {
            expect(() => region.take(Uint32Array.of(row), 0, 1, 1)).toThrow(`row ${row}`);
          }
        }
      }),
    );
  });

  it("that are removed hold their busy rows against their aliases until the copies end", () => {
    const windows = new Windows();
    const first = new Region(1, view, request, 9, windows, "memfd");
    const second = new Region(2, view, request, 9, windows, "memfd");
    const stranger = new Region(3, view, request, 9, windows, "other");
    first.take(Uint32Array.of(5), 0, 1, 1);
    first.remove();
    expect(second.isFree(5)).toBe(false);
    expect(second.isFree(4)).toBe(true);
    expect(stranger.isFree(5)).toBe(true);
    expect(windows.aliases("memfd")).toBe(2);
    first.give(5);
    expect(second.isFree(5)).toBe(true);
    expect(windows.aliases("memfd")).toBe(1);
    second.remove();
    expect(windows.aliases("memfd")).toBe(0);
  });
});

describe("tenants", () => {
  it("are told by the socket, else by the uid, and never by what a client says", () => {
    const sessions = new Sessions([
      { name: "default", uids: [] },
      { name: "team", uids: [7] },
      { name: "open", uids: [] },
    ]);
    expect(sessions.tenantOf(0, 1)).toBe("default");
    expect(sessions.tenantOf(0, 7)).toBe("team");
    expect(sessions.tenantOf(1, 7)).toBe("team");
    expect(() => sessions.tenantOf(1, 8)).toThrow("uid 8");
    expect(sessions.tenantOf(2, 8)).toBe("open");
  });

  it("may use one engine id each, and an instance ends with its last connection", () => {
    const sessions = new Sessions([{ name: "default", uids: [] }]);
    const one = sessions.accept(1, 1, 5, "default");
    const two = sessions.accept(2, 1, 5, "other");
    const three = sessions.accept(3, 1, 6, "default");
    const four = sessions.accept(4, 1, 5, "default");
    const first = sessions.join(one, "e", "x", [namespace], 0);
    expect(sessions.join(two, "e", "x", [namespace], 0)).not.toBe(first);
    expect(() => sessions.join(three, "e", "x", [namespace], 0)).toThrow("uid 6");
    expect(sessions.join(four, "e", "x", [namespace], 0)).toBe(first);
    expect(sessions.leave(one)).toBe(false);
    expect(sessions.leave(four)).toBe(true);
    expect(sessions.find(three, "e")).toBeUndefined();
  });
});
