import { readFileSync } from "node:fs";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { loadAddon } from "../../../addon/load.ts";
import { decodeCold } from "../../../src/engine-api/codec.ts";
import { HEADER, HEADER_BYTES, type HelloReply, OP } from "../../../src/engine-api/protocol.ts";
import { Harness, RawClient } from "../../engine-api/support.ts";
import {
  type Golden,
  goldenFrames,
  goldenSection,
  HELLO_REPLY,
  helloReplyFrame,
  hexOf,
  JOB,
  REGION,
} from "./frames.ts";

interface Stored {
  readonly name: string;
  readonly from: string;
  readonly hex: string;
}

const stored = JSON.parse(
  readFileSync(new URL("./frames.json", import.meta.url), "utf8"),
) as Stored[];

describe("golden frames", () => {
  it("are written byte for byte as version 1 fixed them", () => {
    const written = goldenFrames().map(({ name, from, frame }) => ({
      name,
      from,
      hex: hexOf(frame),
    }));
    expect(written).toEqual(stored);
  });

  it("stand in docs/protocol.md as they are", () => {
    const page = readFileSync(new URL("../../../docs/protocol.md", import.meta.url), "utf8");
    expect(page).toContain(goldenSection());
  });
});

describe("a live daemon", () => {
  let harness: Harness;
  let client: RawClient;
  beforeAll(async () => {
    harness = await new Harness().start();
    client = new RawClient(harness.socket);
  });
  afterAll(async () => {
    client.close();
    await harness.stop();
  });

  /** Seed, epoch, node and times differ from life to life: they are taken from the golden frame. */
  function masked(reply: Uint8Array, golden: Uint8Array, op: number): string {
    const out = reply.slice();
    const bodyAt = HEADER_BYTES;
    if (op === OP.REGISTER) return hexOf(out.subarray(0, 8));
    if (op === OP.HELLO) {
      const reply = decodeCold(out.subarray(bodyAt)) as unknown as HelloReply;
      const { epoch, node } = HELLO_REPLY;
      expect(reply.epoch).toMatch(/^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/);
      return hexOf(helloReplyFrame({ ...reply, epoch, node }));
    }
    const completion = (out[HEADER.FLAGS]! & 4) !== 0;
    if (completion) out.set(golden.subarray(bodyAt + 4, bodyAt + 8), bodyAt + 4);
    return hexOf(out);
  }

  it("answers the golden session with the golden replies", async () => {
    const frames = goldenFrames();
    const answers = new Map<number, Golden[]>();
    for (const golden of frames) {
      if (golden.from !== "daemon") continue;
      const own = new DataView(golden.frame.buffer).getUint32(HEADER.TAG, true);
      const tag = golden.cause ?? own;
      answers.set(tag, [...(answers.get(tag) ?? []), golden]);
    }
    // LOAD names a lease, which a daemon draws at random.
    const random = new Set([6]);
    for (const { frame, from } of frames) {
      if (from !== "client") continue;
      const view = new DataView(frame.buffer);
      const tag = view.getUint32(HEADER.TAG, true);
      const op = view.getUint8(HEADER.OP);
      if (random.has(tag)) continue;
      const carried = op === OP.REGISTER ? loadAddon().clientMemfd(32_768, false).descriptor : -1;
      client.send(frame, carried);
      if (op === OP.HEARTBEAT) continue;
      if (op === OP.FILL) {
        const completion = await client.next();
        expect(completion?.header).toMatchObject({ op: OP.STORE, tag: 7, count: 1 });
        continue;
      }
      const expected = answers.get(tag);
      if (expected === undefined) {
        const reply = await client.next();
        expect(reply?.error).toBeUndefined();
        continue;
      }
      for (const golden of expected) {
        const reply = await client.nextBytes();
        expect(masked(reply, golden.frame, op), golden.name).toBe(
          masked(golden.frame, golden.frame, op),
        );
      }
    }
    expect(REGION).toBe(1);
    expect(JOB).toBe(2 ** 32 + 1);
  });
});
