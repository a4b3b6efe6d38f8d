/**
 * The one outbound buffer. A reply is written here and handed to the transport, which copies it before
 * send() returns; so no reply allocates. Usage: begin(), body writes at BODY, end().
 */
import type { Addon } from "../../addon/binding.ts";
import { assert } from "../assert.ts";
import { CairnError, type ErrorName } from "../errors.ts";
import { LIMITS } from "../limits.ts";
import { encodeCold, errorBody, writeHeader } from "./codec.ts";
import { FLAG, HEADER_BYTES } from "./protocol.ts";

/** Offset of the body in the outbound buffer. */
export const BODY = HEADER_BYTES;
/** The largest reply: a completion that names every block of a full frame. */
const OUTBOUND_BYTES = HEADER_BYTES + 16 + LIMITS.keysPerFrameMax * 8 + LIMITS.coldBodyBytesMax;

export class Outbound {
  readonly bytes = new Uint8Array(OUTBOUND_BYTES);
  readonly view = new DataView(this.bytes.buffer);
  readonly #addon: Pick<Addon, "send">;
  #op = 0;
  #flags = 0;
  #tag = 0;
  #id = 0;
  #count = 0;
  #namespace = 0;

  constructor(addon: Pick<Addon, "send">) {
    this.#addon = addon;
  }

  begin(op: number, flags: number, tag: number, id: number, count: number, namespace = 0): void {
    this.#op = op;
    this.#flags = flags;
    this.#tag = tag;
    this.#id = id;
    this.#count = count;
    this.#namespace = namespace;
  }

  /** Sends what begin() announced with `bodyBytes` of body. False: the connection is gone. */
  end(connection: number, bodyBytes: number, descriptor = -1): boolean {
    const length = HEADER_BYTES + bodyBytes;
    assert(length <= this.bytes.byteLength, "a reply fits the outbound buffer");
    const flags = descriptor === -1 ? this.#flags : this.#flags | FLAG.DESCRIPTOR;
    writeHeader(
      this.view,
      0,
      this.#op,
      flags,
      bodyBytes,
      this.#tag,
      this.#id,
      this.#count,
      this.#namespace,
    );
    return this.#addon.send(connection, this.bytes, 0, length, descriptor);
  }

  /** An empty reply. */
  acknowledge(connection: number, op: number, tag: number, id: number, count: number): boolean {
    this.begin(op, FLAG.REPLY, tag, id, count);
    return this.end(connection, 0);
  }

  cold(connection: number, op: number, tag: number, id: number, body: object, descriptor = -1) {
    const encoded = encodeCold(body);
    this.begin(op, FLAG.REPLY, tag, id, 0);
    this.bytes.set(encoded, BODY);
    return this.end(connection, encoded.byteLength, descriptor);
  }

  error(
    connection: number,
    op: number,
    tag: number,
    id: number,
    name: ErrorName,
    message: string,
    detail: number,
  ): boolean {
    const encoded = encodeCold(errorBody(name, message.slice(0, 1_024), detail));
    this.begin(op, FLAG.REPLY | FLAG.ERROR, tag, id, 0);
    this.bytes.set(encoded, BODY);
    return this.end(connection, encoded.byteLength);
  }
}

/** What to answer for a caught value: its row if it is ours, `internal` otherwise. */
export function asCairnError(error: unknown): CairnError {
  if (error instanceof CairnError) return error;
  return new CairnError("internal", error instanceof Error ? error.message : String(error));
}
