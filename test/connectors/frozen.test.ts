/** A daemon that is frozen, and killed, while it owns rows of a client's window. */
import { closeSync, fstatSync, openSync } from "node:fs";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { loadAddon } from "../../addon/load.ts";
import { BatchPort } from "../../connectors/node/batch.ts";
import type { CairnClient, Window } from "../../connectors/node/index.ts";
import { OP } from "../../src/engine-api/protocol.ts";
import { clientOf, eventually, keyAt, keysOf, payloadOf, rowsFrom } from "../e2e/support.ts";
import { TestDaemon } from "../harness/daemon.ts";
import { coldFrame, frameOf, helloOf } from "../harness/frames.ts";

const BLOCKS = 8;
const keys = keysOf(5, BLOCKS);
let daemon: TestDaemon;
let client: CairnClient;
let window: Window;

beforeEach(async () => {
  daemon = await TestDaemon.start();
  client = await clientOf(daemon.socket, { engineId: "frozen", strict: false });
  window = await client.createWindow({ blocks: 2 * BLOCKS });
  for (let row = 0; row < BLOCKS; row++) window.row(row).set(payloadOf(keyAt(keys, row)));
  const rows = rowsFrom(0, BLOCKS);
  expect((await client.store({ window, startDepth: 0, keys, rows })).landed).toBe(BLOCKS);
});
afterEach(async () => {
  client.close();
  await daemon.remove();
});

async function load(requestId: number): Promise<number> {
  const { lease } = await client.lookup(requestId, keys);
  const rows = rowsFrom(BLOCKS, BLOCKS);
  return (await client.load({ lease, window, startDepth: 0, keys, rows })).landed;
}

describe("a daemon that is frozen with a LOAD in hand", () => {
  it("writes late into memory that nobody can see any more", async () => {
    const { lease } = await client.lookup(1, keys);
    const before = fstatSync(window.memfd).ino;
    // The memory of old, as the daemon keeps it.
    const witness = openSync(`/proc/self/fd/${window.memfd}`, "r+");
    const oldRow = window.row(BLOCKS);
    daemon.signal("SIGSTOP");
    const rows = rowsFrom(BLOCKS, BLOCKS);
    const lost = await client.load({ lease, window, startDepth: 0, keys, rows, deadlineMs: 50 });
    expect(lost).toMatchObject({ landed: 0 });
    expect(lost.failed.length).toBe(BLOCKS);
    expect(oldRow.byteLength).toBe(0);
    expect(fstatSync(window.memfd).ino).not.toBe(before);
    // What lay in other rows is kept.
    expect(Buffer.compare(window.row(3), payloadOf(keyAt(keys, 3)))).toBe(0);
    for (const row of rows) window.row(row).fill(0x5a);
    daemon.signal("SIGCONT");
    await eventually(() => client.connected && window.region !== 0);
    await daemon.settles("jobs", 0);
    for (const row of rows) expect(window.row(row).every((byte) => byte === 0x5a)).toBe(true);
    expect(await load(2)).toBe(BLOCKS);
    expect(Buffer.compare(window.row(BLOCKS), payloadOf(keyAt(keys, 0)))).toBe(0);
    closeSync(witness);
  });

  it("and killed then: the window has other memory for the next one", async () => {
    const before = fstatSync(window.memfd).ino;
    daemon.signal("SIGSTOP");
    const { lease } = { lease: 1 };
    const rows = rowsFrom(BLOCKS, BLOCKS);
    const lost = client.load({ lease, window, startDepth: 0, keys, rows });
    await daemon.stop("SIGKILL");
    expect((await lost).failed.length).toBe(BLOCKS);
    expect(fstatSync(window.memfd).ino).not.toBe(before);
    await daemon.launch();
    await eventually(() => client.connected && window.region !== 0);
    expect(await load(3)).toBe(BLOCKS);
  });

  it("by the batch path, too", async () => {
    const before = fstatSync(window.memfd).ino;
    const port = new BatchPort(client);
    daemon.signal("SIGSTOP");
    const ended = new Promise<number>((resolve) => {
      port.load(window, 1, 0, keys, 0, BLOCKS, BLOCKS, (_landed, failed) => resolve(failed));
    });
    await daemon.stop("SIGKILL");
    expect(await ended).toBe(BLOCKS);
    await eventually(() => fstatSync(window.memfd).ino !== before);
  });
});

describe("a connection that ends", () => {
  it("with nothing in flight leaves the window's memory alone", async () => {
    const before = fstatSync(window.memfd).ino;
    const row = window.row(0);
    await daemon.stop("SIGKILL");
    await eventually(() => !client.connected);
    expect(fstatSync(window.memfd).ino).toBe(before);
    expect(row.byteLength).toBe(4_096);
  });

  it("by the daemon's death is called PEER, also when it had not read everything", async () => {
    const addon = loadAddon();
    const reasons: string[] = [];
    const frames: Uint8Array[] = [];
    const id = addon.clientOpen(
      daemon.socket,
      (frame) => void frames.push(frame.slice()),
      (reason) => void reasons.push(reason),
    );
    const greeting = coldFrame(OP.HELLO, 0, 1, 0, 0, helloOf("unread"));
    addon.clientSend(id, greeting, 0, greeting.byteLength, -1);
    await eventually(() => frames.length === 1);
    daemon.signal("SIGSTOP");
    const beat = frameOf({ op: OP.HEARTBEAT, tag: 2 });
    for (let count = 0; count < 100; count++) addon.clientSend(id, beat, 0, beat.byteLength, -1);
    await daemon.stop("SIGKILL");
    await eventually(() => reasons.length > 0);
    expect(reasons).toEqual(["PEER"]);
  });
});

describe("a daemon that is killed and started again", () => {
  it("is given the window anew without a byte of its rows changing while the engine works on", async () => {
    let value = 1;
    let foreign = 0;
    window.row(0).fill(value);
    await daemon.stop("SIGKILL");
    await eventually(() => !client.connected);
    const launched = daemon.launch();
    // In every turn of the loop: what is seen in between is what an engine would see.
    for (const until = performance.now() + 20_000; !client.connected; ) {
      expect(performance.now()).toBeLessThan(until);
      const row = window.row(0);
      if (!row.every((byte) => byte === value)) foreign += 1;
      value = (value % 255) + 1;
      row.fill(value);
      await new Promise((resolve) => {
        setImmediate(resolve);
      });
    }
    await launched;
    expect(foreign).toBe(0);
    expect(await load(3)).toBe(BLOCKS);
    expect(window.row(0).every((byte) => byte === value)).toBe(true);
  });
});
