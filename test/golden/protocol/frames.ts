/**
 * The golden frames, as this code base writes them today. frames.json holds the bytes that version 1 of the
 * protocol fixed; the test compares the two, docs/protocol.md, and a live daemon.
 */
import { coldFrame, errorBody } from "../../../src/engine-api/codec.ts";
import { namespaceDigest } from "../../../src/engine-api/descriptor.ts";
import { FLAG, type HelloReply, OP } from "../../../src/engine-api/protocol.ts";
import { ERRORS } from "../../../src/errors.ts";
import { descriptor } from "../../e2e/support.ts";
import { helloBody, hotFrame, registerBody } from "../../engine-api/support.ts";

/** Two 32-byte keys: 01…, 02… */
export const KEYS = Uint8Array.from({ length: 64 }, (_, index) => (index < 32 ? 1 : 2));
export const LEASE = 0x000a_bcde_f012_3456;
export const JOB = 2 ** 32 + 1;
export const REGION = 1;
export const MICROSECONDS = 250;

export interface Golden {
  readonly name: string;
  readonly from: "client" | "daemon";
  readonly frame: Uint8Array;
  /** Tag of the frame that this one answers, where that is not its own. */
  readonly cause?: number;
}

function client(name: string, frame: Uint8Array): Golden {
  return { name, from: "client", frame };
}

function daemon(name: string, frame: Uint8Array): Golden {
  return { name, from: "daemon", frame };
}

const { REPLY, COMPLETION, ERROR } = FLAG;

/** What a daemon on its defaults answers; epoch and node differ from life to life and from host to host. */
export const HELLO_REPLY: HelloReply = {
  protocol: 1,
  instance: 1,
  epoch: "00112233-4455-4677-8899-aabbccddeeff",
  node: "node-1",
  namespaces: [{ handle: 1, digest: digestOf() }],
  heartbeatMs: 2_000,
  leaseMs: 6_000,
  limits: {
    keysPerFrameMax: 65_536,
    frameBodyBytesMax: 2_363_392,
    inFlightJobsMax: 256,
    windowBytesMax: 68_719_476_736,
    loadDeadlineMsMax: 60_000,
    storeFillMs: 10_000,
  },
};

function digestOf(): Uint8Array {
  return namespaceDigest({ ...descriptor(), chunkBlocks: 16 }, "default", "");
}

export function helloReplyFrame(reply: HelloReply): Uint8Array {
  return coldFrame(OP.HELLO, REPLY, 1, 0, 0, reply);
}

/** In the order of one short session; tags count up. */
export function goldenFrames(): Golden[] {
  const done = [0, MICROSECONDS, 8_192, 0];
  return [
    client("HELLO", coldFrame(OP.HELLO, 0, 1, 0, 0, helloBody("golden"))),
    daemon("HELLO reply", helloReplyFrame(HELLO_REPLY)),
    client(
      "REGISTER (a memfd of 32,768 bytes travels with it)",
      coldFrame(OP.REGISTER, FLAG.DESCRIPTOR, 2, 0, 0, registerBody(8)),
    ),
    daemon(
      "REGISTER reply (seed 7)",
      coldFrame(OP.REGISTER, REPLY, 2, REGION, 0, {
        region: REGION,
        sizeBytes: 32_768,
        proof: false,
        seed: 7,
        block: 0,
      }),
    ),
    client("LOOKUP of two keys, request 5", hotFrame(OP.LOOKUP, 0, 3, 5, 2, [0, 0, KEYS])),
    daemon(
      "LOOKUP reply: a miss, leaseMs 6,000",
      hotFrame(OP.LOOKUP, REPLY, 3, 0, 0, [0, 0, 0, 6_000, ...new Array<number>(12).fill(0)]),
    ),
    client(
      "STORE of two blocks at the root, dataReady, rows 0 and 1",
      hotFrame(OP.STORE, FLAG.DATA_READY, 4, 0, 2, [
        ...[0, REGION, 0, 0, 32, 0],
        new Uint8Array(32),
        KEYS,
        ...[0, 1],
      ]),
    ),
    daemon(
      "STORE reply: both wanted",
      hotFrame(OP.STORE, REPLY, 4, JOB, 2, [2, 0, 0, 0, Uint8Array.of(2, 2)]),
    ),
    daemon(
      "STORE completion: both visible, 250 µs",
      hotFrame(OP.STORE, REPLY | COMPLETION, 4, JOB, 2, done, 0),
    ),
    client("LOOKUP again", hotFrame(OP.LOOKUP, 0, 5, 5, 2, [0, 0, KEYS])),
    client(
      "LOAD of both under lease 0xabcdef0123456 into rows 2 and 3",
      hotFrame(OP.LOAD, 0, 6, LEASE, 2, [0, REGION, 0, 0, KEYS, 2, 3]),
    ),
    daemon("LOAD completion: both landed", hotFrame(OP.LOAD, REPLY | COMPLETION, 6, 6, 2, done, 0)),
    client(
      "STORE without dataReady below the two",
      hotFrame(OP.STORE, 0, 7, 0, 1, [
        ...[2, REGION, 0, 0, 16, 0],
        KEYS.subarray(32),
        new Uint8Array(32).fill(3),
      ]),
    ),
    client("FILL: position 0 from row 4", hotFrame(OP.FILL, 0, 8, JOB + 1, 1, [0, 4], 0)),
    client("CANCEL of job 99", hotFrame(OP.CANCEL, 0, 9, 99, 0, [], 0)),
    daemon("CANCEL reply: no such job", hotFrame(OP.CANCEL, REPLY, 9, 99, 0, [], 0)),
    client("FLUSH", hotFrame(OP.FLUSH, 0, 10, 0, 0, [], 0)),
    daemon("FLUSH reply", hotFrame(OP.FLUSH, REPLY, 10, 0, 0, [], 0)),
    client("TOUCH of one chain", hotFrame(OP.TOUCH, 0, 11, 0, 1, [KEYS.subarray(32)])),
    daemon("TOUCH reply: one block found", hotFrame(OP.TOUCH, REPLY, 11, 0, 1, [], 0)),
    client(
      "PROVE",
      coldFrame(OP.PROVE, 0, 12, 0, 0, { namespace: 1, key: KEYS.subarray(32), ok: true }),
    ),
    daemon("PROVE reply", coldFrame(OP.PROVE, REPLY, 12, 0, 0, { proven: false })),
    client("END_REQUEST 5", hotFrame(OP.END_REQUEST, 0, 13, 5, 0, [], 0)),
    daemon("END_REQUEST reply: it was known", hotFrame(OP.END_REQUEST, REPLY, 13, 5, 1, [], 0)),
    client("HEARTBEAT, no reply wanted", hotFrame(OP.HEARTBEAT, FLAG.NO_REPLY, 0, 0, 0, [], 0)),
    client(
      "LOAD under lease 77, which was never given",
      hotFrame(OP.LOAD, 0, 15, 77, 1, [0, REGION, 0, 0, KEYS.subarray(0, 32), 2]),
    ),
    daemon(
      "its error: no job was taken, so no completion follows",
      coldFrame(
        OP.LOAD,
        REPLY | ERROR,
        15,
        77,
        0,
        errorBody("unknownLease", "no such lease in this instance", 0),
      ),
    ),
    client(
      "STORE without dataReady of another block",
      hotFrame(OP.STORE, 0, 16, 0, 1, [
        ...[0, REGION, 0, 0, 16, 0],
        new Uint8Array(32),
        new Uint8Array(32).fill(4),
      ]),
    ),
    daemon(
      "STORE reply: wanted",
      hotFrame(OP.STORE, REPLY, 16, JOB + 2, 1, [1, 0, 0, 0, Uint8Array.of(2)]),
    ),
    client("CANCEL of that job", hotFrame(OP.CANCEL, 0, 17, JOB + 2, 0, [], 0)),
    {
      ...daemon(
        "STORE completion: none visible, position 0 failed with code 409 (cancelled)",
        hotFrame(
          OP.STORE,
          REPLY | COMPLETION,
          16,
          JOB + 2,
          0,
          [...[1, MICROSECONDS, 0, 0], ...[0, ERRORS.cancelled.code]],
          0,
        ),
      ),
      cause: 17,
    },
    daemon("CANCEL reply: it was in flight", hotFrame(OP.CANCEL, REPLY, 17, JOB + 2, 1, [], 0)),
    client("an operation that does not exist", hotFrame(77, 0, 14, 0, 0, [], 0)),
    daemon(
      "its error",
      coldFrame(77, REPLY | ERROR, 14, 0, 0, errorBody("unknownOp", "operation 77", 77)),
    ),
  ];
}

export function hexOf(frame: Uint8Array): string {
  return Buffer.from(frame).toString("hex");
}

/** The section of docs/protocol.md. */
export function goldenSection(): string {
  const lines = goldenFrames().map(
    ({ name, from, frame }) => `${from}: ${name}\n\`${hexOf(frame)}\`\n`,
  );
  const intro = [
    "## Golden frames",
    "One short session, with the descriptor of `test/e2e/support.ts`.",
    "Region, job, lease, seed, epoch, node and microseconds are examples.",
  ];
  return `${intro.join("\n")}\n\n${lines.join("\n")}`;
}
