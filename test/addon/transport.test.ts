/** Who serves the engine API's sockets: the idle JS thread, or the transport thread while JS is busy. */
import { type Socket, connect } from "node:net";
import { once } from "node:events";
import { join } from "node:path";
import { afterAll, expect, test } from "vitest";
import { coldFrame } from "../../src/engine-api/codec.ts";
import { OP } from "../../src/engine-api/protocol.ts";
import { Pump } from "./pump.ts";

const GIVE_UP_MS = 10_000;
const pump = new Pump();
const { addon } = pump;
const path = join(pump.directory, "engine.sock");
addon.listen(path, 0o600, 1);
afterAll(() => pump.close());

/** A frame whose tag is `tag`; libuv writes it before this returns when the socket has room. */
function send(client: Socket, tag: number): void {
  client.write(coldFrame(OP.STATS, 0, tag, 0, 0, {}));
}

const tagOf = ({ bytes }: { bytes: Uint8Array }): number =>
  new DataView(bytes.buffer).getUint32(12, true);

async function connected(): Promise<{ client: Socket; id: number }> {
  const before = pump.accepted.length;
  const client = connect(path);
  await once(client, "connect");
  await pump.until(() => pump.accepted.length > before);
  return { client, id: pump.accepted.at(-1)! };
}

/** Keeps the JS thread busy until `done`: no event loop turn comes in between. */
function busyUntil(done: () => boolean): boolean {
  const endMs = performance.now() + GIVE_UP_MS;
  while (performance.now() < endMs) if (done()) return true;
  return false;
}

test("while the JS thread is busy frames are read and the end of a connection is seen", async () => {
  const { client, id } = await connected();
  const frames = addon.counters().framesReceived;
  for (let tag = 1; tag <= 3; tag++) send(client, tag);
  expect(busyUntil(() => addon.counters().framesReceived === frames + 3)).toBe(true);
  client.destroy();
  expect(busyUntil(() => addon.counters().connections === 0)).toBe(true);
  expect(pump.frames).toHaveLength(0);
  await pump.until(() => pump.closes.has(id));
  expect(pump.frames.splice(0).map(tagOf)).toEqual([1, 2, 3]);
});

test("frames that the transport thread and JS read in turns come in the order they were sent", async () => {
  const { client } = await connected();
  const rounds = 6;
  const eachTime = 50;
  let tag = 0;
  for (let round = 0; round < rounds; round++) {
    // Read by the idle JS thread.
    for (let i = 0; i < eachTime; i++) send(client, tag++);
    await pump.until(() => pump.frames.length === tag);
    // Read by the transport thread while we are busy, and what follows by whichever comes first.
    const read = addon.counters().framesReceived;
    for (let i = 0; i < eachTime; i++) send(client, tag++);
    expect(busyUntil(() => addon.counters().framesReceived > read)).toBe(true);
    for (let i = 0; i < eachTime; i++) send(client, tag++);
    await pump.until(() => pump.frames.length === tag);
  }
  expect(pump.frames.splice(0).map(tagOf)).toEqual(Array.from({ length: tag }, (_, at) => at));
  client.destroy();
});
