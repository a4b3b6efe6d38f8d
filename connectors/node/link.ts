/**
 * One connection to the daemon: frames out through one reusable buffer, replies and completions in, matched
 * by tag. Every expectation has a deadline that one coarse timer watches; nothing waits for ever.
 */
import type { Addon } from "../../addon/binding.ts";
import { CairnError, type ErrorName, errorNameOfCode } from "../../src/errors.ts";
import {
  type ColdMap,
  decodeCold,
  emptyHeader,
  type FrameHeader,
  readHeader,
  writeHeader,
} from "../../src/engine-api/codec.ts";
import { FLAG, HEADER_BYTES } from "../../src/engine-api/protocol.ts";
import { LIMITS } from "../../src/limits.ts";

const TICK_MS = 20;
const FRAME_BYTES_MAX = HEADER_BYTES + LIMITS.frameBodyBytesMax;

export type LinkAddon = Pick<
  Addon,
  | "clientOpen"
  | "clientSend"
  | "clientClose"
  | "clientMemfd"
  | "clientMap"
  | "clientDetach"
  | "closeDescriptor"
>;

/** A frame that came in. `body` is valid during the call only. */
export interface Reply {
  readonly header: FrameHeader;
  readonly body: Uint8Array;
  readonly view: DataView;
  /** −1 = none; ours to close. */
  readonly descriptor: number;
}

/** Who waits for a tag. Return true when nothing more is expected under it. */
export interface Expectation {
  deadlineAt: number;
  reply(reply: Reply): boolean;
  fail(error: CairnError): void;
}

export class Link {
  readonly out = new Uint8Array(FRAME_BYTES_MAX);
  readonly view = new DataView(this.out.buffer);
  readonly words = new Uint32Array(this.out.buffer);
  readonly #addon: LinkAddon;
  readonly #header = emptyHeader();
  readonly #expected = new Map<number, Expectation>();
  readonly #onClose: (reason: string) => void;
  readonly #timer: NodeJS.Timeout;
  #client = -1;
  #lastTag = 0;

  /** @throws CairnError unavailable when nobody listens */
  constructor(addon: LinkAddon, path: string, onClose: (reason: string) => void) {
    this.#addon = addon;
    this.#onClose = onClose;
    try {
      this.#client = addon.clientOpen(
        path,
        (frame, descriptor) => this.#frame(frame, descriptor),
        (reason) => this.#closed(reason),
      );
    } catch (error) {
      throw new CairnError("unavailable", `${path}: ${(error as Error).message}`);
    }
    this.#timer = setInterval(() => this.#tick(), TICK_MS);
    this.#timer.unref();
  }

  get open(): boolean {
    return this.#client !== -1;
  }

  get waiting(): number {
    return this.#expected.size;
  }

  /** A tag that nobody waits under. */
  tag(): number {
    do this.#lastTag = (this.#lastTag + 1) >>> 0;
    while (this.#lastTag === 0 || this.#expected.has(this.#lastTag));
    return this.#lastTag;
  }

  /**
   * Sends the frame whose body stands in `out` from HEADER_BYTES on, and files who waits for its answer.
   * @throws CairnError unavailable when the connection is gone or the daemon does not read
   */
  send(
    op: number,
    flags: number,
    tag: number,
    id: number,
    count: number,
    namespace: number,
    bodyBytes: number,
    expectation: Expectation | undefined,
    descriptor = -1,
  ): void {
    if (this.#client === -1) throw new CairnError("unavailable", "not connected");
    const carried = descriptor === -1 ? flags : flags | FLAG.DESCRIPTOR;
    writeHeader(this.view, 0, op, carried, bodyBytes, tag, id, count, namespace);
    const length = HEADER_BYTES + bodyBytes;
    if (!this.#addon.clientSend(this.#client, this.out, 0, length, descriptor)) {
      throw new CairnError("unavailable", "the daemon does not take frames");
    }
    if (expectation !== undefined) this.#expected.set(tag, expectation);
  }

  /** Nobody waits under this tag any more. */
  forget(tag: number): void {
    this.#expected.delete(tag);
  }

  close(reason: string): void {
    if (this.#client === -1) return;
    this.#addon.clientClose(this.#client);
    this.#closed(reason);
  }

  #frame(frame: Uint8Array, descriptor: number): void {
    const view = new DataView(frame.buffer, frame.byteOffset, frame.byteLength);
    const header = this.#header;
    readHeader(view, 0, header);
    const expectation = this.#expected.get(header.tag);
    if (expectation === undefined) {
      if (descriptor !== -1) this.#addon.closeDescriptor(descriptor);
      return; // Given up meanwhile.
    }
    const body = frame.subarray(HEADER_BYTES);
    if ((header.flags & FLAG.ERROR) !== 0) {
      this.#expected.delete(header.tag);
      expectation.fail(errorOf(body));
      return;
    }
    const bodyView = new DataView(body.buffer, body.byteOffset, body.byteLength);
    try {
      const done = expectation.reply({ header, body, view: bodyView, descriptor });
      if (done) this.#expected.delete(header.tag);
    } catch (error) {
      // Nobody is above us to catch it: an answer that makes no sense is the waiting call's failure.
      this.#expected.delete(header.tag);
      const reason =
        error instanceof CairnError ? error : new CairnError("internal", String(error));
      expectation.fail(reason);
    }
  }

  #tick(): void {
    const now = performance.now();
    for (const [tag, expectation] of this.#expected) {
      if (now < expectation.deadlineAt) continue;
      this.#expected.delete(tag);
      expectation.fail(new CairnError("deadlineExceeded", "the daemon did not answer in time"));
    }
  }

  #closed(reason: string): void {
    if (this.#client === -1) return;
    this.#client = -1;
    clearInterval(this.#timer);
    const waiting = [...this.#expected.values()];
    this.#expected.clear();
    for (const expectation of waiting) expectation.fail(new CairnError("unavailable", reason));
    this.#onClose(reason);
  }
}

/** The typed error of an error reply. */
export function errorOf(body: Uint8Array): CairnError {
  let map: ColdMap;
  try {
    map = decodeCold(body);
  } catch {
    return new CairnError("internal", "an error reply that cannot be read");
  }
  const code = map["code"];
  const message = map["message"];
  const detail = map["detail"];
  const name: ErrorName = typeof code === "number" ? errorNameOfCode(code) : "internal";
  return new CairnError(
    name,
    typeof message === "string" ? message : name,
    typeof detail === "number" ? detail : 0,
  );
}
