/** What the S3 store does on the wire: connections that it opens and keeps, headers that it sends. */
import { connect, createServer, type Server, type Socket } from "node:net";
import { afterEach, beforeEach, expect, test } from "vitest";
import { S3Store } from "../../../tiers/remote/s3.ts";
import { FAKE_KEYS, FAKE_REGION, FakeS3 } from "../../harness/fake-s3.ts";
import { bytesOf, LIMITS, listed } from "./contract.ts";

const SOCKETS = 3;
const OBJECTS = 24;

/** Passes bytes on, and sees them. */
class Wire {
  /** What each connection has sent. */
  readonly sent: string[] = [];
  /** Connections that were open together. */
  most = 0;
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();
  #open = 0;

  constructor(port: number) {
    this.#server = createServer((client) => {
      const at = this.sent.push("") - 1;
      this.#open += 1;
      this.most = Math.max(this.most, this.#open);
      const store = connect(port, "127.0.0.1");
      client.on("data", (bytes) => {
        this.sent[at] += bytes.toString("latin1");
      });
      client.on("close", () => {
        this.#open -= 1;
      });
      for (const [from, to] of [
        [client, store],
        [store, client],
      ] as const) {
        this.#sockets.add(from);
        from.on("error", () => to.destroy());
        from.pipe(to);
      }
    });
  }

  listen(): Promise<number> {
    return new Promise((resolve) => {
      this.#server.listen(0, "127.0.0.1", () => {
        const address = this.#server.address();
        resolve(typeof address === "object" ? (address?.port ?? 0) : 0);
      });
    });
  }

  async close(): Promise<void> {
    for (const socket of this.#sockets) socket.destroy();
    await new Promise((resolve) => {
      this.#server.close(resolve);
    });
  }
}

let fake: FakeS3;
let wire: Wire;
let store: S3Store;

beforeEach(async () => {
  fake = await FakeS3.start();
  wire = new Wire(fake.port);
  store = new S3Store({
    bucket: fake.bucket,
    prefix: "",
    region: FAKE_REGION,
    endpoint: `http://127.0.0.1:${await wire.listen()}`,
    pathStyle: true,
    credentials: FAKE_KEYS,
    signPayload: false,
    socketsMax: SOCKETS,
    idleMs: 10_000,
  });
});
afterEach(async () => {
  await store.close();
  await wire.close();
  await fake.stop();
});

/** Writes, reads, lists, asks for and deletes all objects, as many at once as there are. */
async function everything(): Promise<void> {
  const names = Array.from({ length: OBJECTS }, (_, at) => `v1/object-${at}`);
  const body = bytesOf(20_000, 1);
  const stored = await Promise.all(names.map((name) => store.put(name, body, LIMITS)));
  expect(stored).toEqual(names.map(() => ({ ok: true, value: "stored" })));
  const reads = names.map((name) => store.get(name, 5_000, new Uint8Array(10_000), LIMITS));
  const heads = names.map((name) => store.head(name, LIMITS));
  const [, found] = await Promise.all([Promise.all([...reads, ...heads]), listed(store, "v1/")]);
  expect(found).toHaveLength(OBJECTS);
  const gone = await Promise.all(names.map((name) => store.delete(name, LIMITS)));
  expect(gone.every(({ ok }) => ok)).toBe(true);
}

const READ = /^GET .*\r\n(?:.+\r\n)*?range: /im;

test("reads of payload have so many connections, all other calls as many, and both keep them", async () => {
  await everything();
  await everything();
  const reads = wire.sent.filter((sent) => READ.test(sent));
  const others = wire.sent.filter((sent) => /^(?:PUT|HEAD|DELETE) |\?list-type=/m.test(sent));
  expect(reads).toHaveLength(SOCKETS);
  expect(others).toHaveLength(SOCKETS);
  expect(reads.filter((sent) => others.includes(sent))).toEqual([]);
  expect(wire.sent).toHaveLength(2 * SOCKETS);
  expect(wire.most).toBe(2 * SOCKETS);
});

test("no call carries a checksum or a trailer that such a store need not know", async () => {
  await everything();
  const headers = wire.sent.join("").toLowerCase();
  expect(headers).toContain("x-amz-content-sha256: unsigned-payload");
  expect(headers).toContain("if-none-match: *");
  for (const unknown of ["x-amz-checksum", "x-amz-sdk-checksum", "x-amz-trailer", "aws-chunked"]) {
    expect(headers).not.toContain(unknown);
  }
});
