/** Drives test/harness/descriptors.py: a connection of another process that passes any descriptor, any number of them. */
import { type ChildProcessByStdio, spawn } from "node:child_process";
import { createInterface } from "node:readline";
import type { Readable, Writable } from "node:stream";
import { fileURLToPath } from "node:url";
import { emptyHeader, readHeader } from "../../src/engine-api/codec.ts";
import { HEADER_BYTES } from "../../src/engine-api/protocol.ts";
import { eventually } from "./eventually.ts";
import type { Frame } from "./wire.ts";

export type DescriptorKind =
  | "unsealed"
  | "grow"
  | "shrink"
  | "sealed"
  | "frozen"
  | "small"
  | "empty"
  | "null"
  | "directory"
  | "pipe"
  | "socket";

interface Line {
  readonly hex?: string;
  readonly sent?: number;
  readonly closed?: boolean;
}

export class DescriptorClient {
  readonly #child: ChildProcessByStdio<Writable, Readable, null>;
  #bytes = Buffer.alloc(0);
  #sent: number[] = [];
  closed = false;

  constructor(socket: string) {
    const script = fileURLToPath(new URL("./descriptors.py", import.meta.url));
    this.#child = spawn("python3", [script, socket], { stdio: ["pipe", "pipe", "inherit"] });
    createInterface({ input: this.#child.stdout }).on("line", (text) => {
      const line = JSON.parse(text) as Line;
      if (line.hex !== undefined)
        this.#bytes = Buffer.concat([this.#bytes, Buffer.from(line.hex, "hex")]);
      if (line.sent !== undefined) this.#sent.push(line.sent);
      if (line.closed === true) this.closed = true;
    });
  }

  /** Sends `bytes` in pieces of `each` bytes, every piece with descriptors of these kinds; pieces sent. */
  async send(
    bytes: Uint8Array,
    kinds: readonly DescriptorKind[],
    each = bytes.byteLength,
  ): Promise<number> {
    const before = this.#sent.length;
    const order = { hex: Buffer.from(bytes).toString("hex"), kinds, each };
    this.#child.stdin.write(`${JSON.stringify(order)}\n`);
    await eventually("the frame is sent", () => this.#sent.length > before);
    return this.#sent[before]!;
  }

  /** The next whole frame that the daemon sent. */
  frame(): Promise<Frame> {
    return eventually("a frame comes back", () => this.#next());
  }

  #next(): Frame | undefined {
    const bytes = this.#bytes;
    if (bytes.byteLength < HEADER_BYTES) return undefined;
    const header = emptyHeader();
    readHeader(new DataView(bytes.buffer, bytes.byteOffset), 0, header);
    const total = HEADER_BYTES + header.bodyBytes;
    if (bytes.byteLength < total) return undefined;
    const body = new Uint8Array(bytes.subarray(HEADER_BYTES, total));
    this.#bytes = bytes.subarray(total);
    return { ...header, body, view: new DataView(body.buffer), descriptor: -1 };
  }

  /** Ends the process and its connection. */
  async close(): Promise<void> {
    this.#child.stdin.end();
    this.#child.kill("SIGKILL");
    await eventually(
      "the client ends",
      () => this.#child.exitCode !== null || this.#child.signalCode !== null,
    );
  }
}
