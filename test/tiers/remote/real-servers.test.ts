/**
 * The S3 store against real servers: the same contract that the in-tree fake is held to, and the faults that can be
 * made from outside (a wrong secret, a flipped byte in the server's own file, a killed server). `.ci/s3-servers`
 * builds both; a server that is absent is named by a test, and with CI_FULL=1 its absence is a failure.
 */
import { readdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { ITEM } from "../../../addon/binding.ts";
import {
  findServer,
  type S3Server,
  type ServerName,
  startServer,
} from "../../../bench/s3-servers.ts";
import { PRIORITY } from "../../../tiers/remote/index.ts";
import type { S3Store } from "../../../tiers/remote/s3.ts";
import { LIMITS, listed, storeContract } from "./contract.ts";
import { chunkOf, tierOver } from "./fixture.ts";
import { absent, storeOf } from "./real-server.ts";

const SERVERS: readonly ServerName[] = ["versitygw", "minio"];

/** Files of at least so many bytes below a directory. */
function largeFiles(directory: string, bytes: number): string[] {
  return readdirSync(directory, { recursive: true, encoding: "utf8" })
    .map((path) => join(directory, path))
    .filter((path) => statSync(path).isFile() && statSync(path).size >= bytes);
}

function suite(name: ServerName): void {
  let server: S3Server;
  beforeAll(async () => {
    server = await startServer(name);
  });
  afterAll(async () => {
    await server?.stop();
  });

  describe.each([
    { how: "unsigned payloads", signPayload: false, prefix: "plain" },
    { how: "signed payloads", signPayload: true, prefix: "signed/deeper" },
  ])("with $how", ({ signPayload, prefix }) => {
    storeContract(() => {
      const open = (): S3Store => storeOf(server, { signPayload, prefix });
      return Promise.resolve({ store: open(), another: open });
    });
  });

  test("a wrong secret, an unknown key and a missing bucket are refused", async () => {
    const { accessKeyId, secretAccessKey } = server;
    const stores = [
      storeOf(server, { credentials: { accessKeyId, secretAccessKey: "wrong" } }),
      storeOf(server, { credentials: { accessKeyId: "NOBODY", secretAccessKey } }),
      storeOf(server, { bucket: "no-such-bucket" }),
    ];
    for (const store of stores) {
      expect(await store.put("v1/a", new Uint8Array(9), LIMITS)).toMatchObject({
        fault: "refused",
      });
      expect(await store.get("v1/a", 0, new Uint8Array(9), LIMITS)).toMatchObject({
        fault: "refused",
      });
      expect(await store.list("", undefined, LIMITS)).toMatchObject({ fault: "refused" });
      expect(await store.check(LIMITS)).toMatchObject({ fault: "refused" });
      await store.close();
    }
  });

  test("a clock an hour ahead is corrected by what the server says", async () => {
    const store = storeOf(server, { clock: () => Date.now() + 3_600_000 });
    expect(await store.put("skewed/a", new Uint8Array(9), LIMITS)).toMatchObject({ ok: true });
    expect(await store.get("skewed/a", 0, new Uint8Array(9), LIMITS)).toMatchObject({ ok: true });
    expect(store.clockCorrections).toBe(1);
    await store.close();
  });

  test("two nodes share chunks through it, and a byte flipped on its disk is never served", async () => {
    const [a, b] = [storeOf(server, { prefix: "t" }), storeOf(server, { prefix: "t" })].map((one) =>
      tierOver(one),
    );
    if (a === undefined || b === undefined) throw new Error("two nodes");
    const chunk = chunkOf(77, 0);
    const stored = await a.tier.upload(chunk, a.dram.items(77, chunk, 0, 4, true), LIMITS);
    expect(stored.outcome).toBe("stored");
    const items = b.dram.items(77, chunk, 0, 4, false);
    const result = await b.tier.fetch(chunk, 0, items, PRIORITY.DEMAND, LIMITS);
    expect([...result.statuses]).toEqual([ITEM.OK, ITEM.OK, ITEM.OK, ITEM.OK]);
    expect(b.dram.holds(items, 77, chunk, 0)).toBe(true);
    expect(await listed(storeOf(server, { prefix: "t" }), "v1/")).toHaveLength(1);

    const files = largeFiles(join(server.directory, "data"), 40_000).filter((path) =>
      path.includes("/t/v1/"),
    );
    expect(files.length).toBeGreaterThan(0);
    for (const path of files) {
      const bytes = readFileSync(path);
      const at = bytes.length - 1_000;
      bytes[at] = (bytes[at] ?? 0) ^ 4;
      writeFileSync(path, bytes);
    }
    const again = b.dram.items(77, chunk, 0, 4, false);
    const bad = await b.tier.fetch(chunk, 0, again, PRIORITY.DEMAND, LIMITS);
    expect([...bad.statuses].filter((status) => status === ITEM.OK).length).toBeLessThan(4);
    for (const [at, status] of bad.statuses.entries()) {
      if (status !== ITEM.OK) continue;
      const one = { slots: again.slots.slice(at, at + 1), blocks: again.blocks.slice(at, at + 1) };
      expect(b.dram.holds(one, 77, chunk, at)).toBe(true);
    }
    await a.tier.close();
    await b.tier.close();
  });

  test("a server that is killed is a fault at once, not a hang", async () => {
    const own = await startServer(name);
    const store = storeOf(own);
    expect(await store.put("v1/a", new Uint8Array(9), LIMITS)).toMatchObject({ ok: true });
    await own.stop();
    expect(await store.get("v1/a", 0, new Uint8Array(9), LIMITS)).toMatchObject({
      fault: "unavailable",
    });
    expect(await store.list("", undefined, LIMITS)).toMatchObject({ fault: "unavailable" });
    await store.close();
  });
}

for (const name of SERVERS) {
  describe(name, () => {
    if (findServer(name) === undefined) absent(name);
    else suite(name);
  });
}
