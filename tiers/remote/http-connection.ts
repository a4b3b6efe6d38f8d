/**
 * A connection on which the kernel writes payload where it belongs: into the caller's memory.
 *
 * Its socket is told where the next bytes go (`onread`): the head of an answer, and the text of a refusal, into a
 * buffer of the connection, payload into its place. Where a socket has more than one read takes, it waits for the next
 * turn of the event loop, so that others wait for one read at most.
 *
 * It carries one exchange at a time, and another only when the answer was whole and nothing came behind it. Every
 * other end closes it, and with it all that could still write to the caller's memory.
 */
import type { OnReadOpts, Socket } from "node:net";
import { assert } from "../../src/assert.ts";
import { LIMITS } from "../../src/limits.ts";
import { type AnswerHead, HEAD_BYTES_MAX, noChunks, parseBody, parseHead } from "./http-answer.ts";
import { type Fault, failure, success } from "./object-store.ts";
import type { Receiving } from "./receiving.ts";

export interface ConnectionOwner {
  /** It may carry another exchange. */
  idle(connection: HttpConnection): void;
  /**
   * Once: it is gone. stale: the exchange that it did not even begin to answer, though it had answered others; the
   * server had closed it, and a fresh connection tells more.
   */
  closed(connection: HttpConnection, stale: Receiving | undefined): void;
}

export class HttpConnection {
  readonly #socket: Socket;
  readonly #owner: ConnectionOwner;
  readonly #idleMs: number;
  readonly #buffer = Buffer.allocUnsafeSlow(LIMITS.answerBufferBytes);
  /** Bytes in the buffer: of a head, then of what follows it. */
  #filled = 0;
  #receiving: Receiving | undefined;
  #head: AnswerHead | undefined;
  /** Payload that has come; undefined while it is none that comes. */
  #received: number | undefined;
  /** Of this answer: reads that were not payload, interim answers before it, chunks of a refusal. */
  #reads = 0;
  #interim = 0;
  #chunks = noChunks();
  #carried = 0;
  #cause = "";

  constructor(open: (onread: OnReadOpts) => Socket, idleMs: number, owner: ConnectionOwner) {
    assert(HEAD_BYTES_MAX < this.#buffer.length, "a head fits, and more");
    this.#idleMs = idleMs;
    this.#owner = owner;
    const socket = open({ buffer: () => this.#next(), callback: (length) => this.#read(length) });
    socket.on("error", (error: NodeJS.ErrnoException) => {
      this.#cause = `${error.code ?? error.name}: ${error.message}`;
      // TLS tells of a broken record and leaves the socket open.
      socket.destroy();
    });
    socket.on("timeout", () => this.#fail("timeout", `silent for ${idleMs} ms`));
    socket.on("end", () => this.#onEnd());
    socket.on("close", () => this.#onClose());
    this.#socket = socket;
  }

  begin(receiving: Receiving): void {
    assert(this.#receiving === undefined, "a connection carries one exchange at a time");
    assert(!receiving.done && !this.#socket.destroyed, "both are there");
    this.#receiving = receiving;
    receiving.holdBy(() => this.#letGo(receiving));
    this.#socket.ref();
    this.#socket.setTimeout(this.#idleMs);
    this.#socket.write(receiving.request);
  }

  /** It will close, and may not be used any more. */
  get destroyed(): boolean {
    return this.#socket.destroyed;
  }

  /** An exchange that it carries ends as if the server had closed it. */
  destroy(): void {
    this.#socket.destroy();
  }

  /** The caller has his answer. Unless it was whole, no byte of it may land any more. */
  #letGo(receiving: Receiving): void {
    if (this.#receiving !== receiving) return;
    this.#receiving = undefined;
    this.destroy();
  }

  /** Where the next read goes. */
  #next(): Uint8Array {
    const into = this.#receiving?.into;
    if (into !== undefined && this.#received !== undefined) {
      return into.subarray(this.#received, this.#received + LIMITS.socketReadBytes);
    }
    // After a failure what still comes is dropped. TLS would ask for room without end where there is none.
    const room = into === undefined ? this.#buffer : this.#buffer.subarray(this.#filled);
    assert(room.length > 0, "a read has room");
    return room;
  }

  /** false: the socket pauses. */
  #read(length: number): boolean {
    const receiving = this.#receiving;
    // Nobody has asked for anything.
    if (receiving === undefined) this.destroy();
    if (receiving === undefined || length === 0) return true;
    if (this.#received === undefined) {
      this.#filled += length;
      this.#reads += 1;
      assert(this.#filled <= this.#buffer.length, "a read stays in its buffer");
      if (this.#reads <= LIMITS.answerReadsMax) this.#examine(receiving);
      else this.#fail("protocol", "the answer comes in too many pieces");
      return true;
    }
    this.#received += length;
    assert(this.#received <= receiving.into.length, "a read stays in its place");
    const last = this.#received === receiving.into.length;
    if (last) this.#complete(receiving, "", true);
    if (last || length < LIMITS.socketReadBytes) return true;
    setImmediate(() => this.#socket.resume());
    return false;
  }

  #examine(receiving: Receiving): void {
    while (this.#head === undefined) {
      const head = parseHead(this.#buffer.subarray(0, this.#filled));
      if (head === "incomplete") return;
      if (head === "malformed" || this.#interim > LIMITS.interimAnswersMax) {
        this.#fail("protocol", "the answer is not HTTP/1.1");
        return;
      }
      this.#buffer.copyWithin(0, head.headBytes, this.#filled);
      this.#filled -= head.headBytes;
      // The real answer follows.
      if (head.status < 200) {
        this.#interim += 1;
        continue;
      }
      this.#head = head;
      if (!this.#accept(receiving, head)) return;
    }
    this.#readText(receiving, this.#head, false);
  }

  /** Whether the body is text. Payload gets its place, and what of it has come is put there. */
  #accept(receiving: Receiving, head: AnswerHead): boolean {
    const { into } = receiving;
    const refusal = receiving.accept(head.status, head.headers);
    if (receiving.done) return false;
    if (refusal !== undefined) {
      receiving.finish(refusal);
      return false;
    }
    if (head.status >= 300) return true;
    if (head.framing.kind !== "length" || head.framing.bytes !== into.length) {
      this.#fail("protocol", "the body is not as long as asked for");
      return false;
    }
    this.#received = Math.min(this.#filled, into.length);
    into.set(this.#buffer.subarray(0, this.#received));
    if (this.#received === into.length) this.#complete(receiving, "", this.#filled === into.length);
    return false;
  }

  #readText(receiving: Receiving, head: AnswerHead, ended: boolean): void {
    const bytes = this.#buffer.subarray(0, this.#filled);
    const body = parseBody(head.framing, bytes, ended, this.#chunks);
    if (body === "malformed") {
      this.#fail("protocol", "the body is not framed as its head says");
    } else if (body !== "incomplete") {
      this.#complete(receiving, body.text, body.bytes === this.#filled);
    } else if (this.#filled === this.#buffer.length) {
      // So much of a refusal says what it is.
      this.#complete(receiving, bytes.toString("utf8"), false);
    }
  }

  /** The answer has come. whole: and nothing else. */
  #complete(receiving: Receiving, text: string, whole: boolean): void {
    const head = this.#head;
    assert(head !== undefined && receiving === this.#receiving, "what is complete had a head");
    this.#receiving = undefined;
    this.#head = undefined;
    this.#received = undefined;
    this.#filled = 0;
    this.#reads = 0;
    this.#interim = 0;
    this.#chunks = noChunks();
    this.#carried += 1;
    const outcome = success({ status: head.status, headers: head.headers, text });
    const sent = this.#socket.writableLength === 0;
    if (!whole || !sent || !head.keepAlive || this.#socket.destroyed) {
      this.destroy();
      receiving.finish(outcome);
      return;
    }
    this.#socket.setTimeout(0);
    this.#socket.unref();
    // What the server has sent too much is read before that, and closes it.
    setImmediate(() => {
      if (!this.#socket.destroyed) this.#owner.idle(this);
      receiving.finish(outcome);
    });
  }

  /** An idle connection that fails is closed, and that is all. */
  #fail(fault: Fault, message: string): void {
    this.destroy();
    this.#receiving?.finish(failure(fault, message));
  }

  /** The server has said all that it will say; close follows. */
  #onEnd(): void {
    if (this.#receiving === undefined || this.#head === undefined) return;
    if (this.#received === undefined) this.#readText(this.#receiving, this.#head, true);
  }

  #onClose(): void {
    const receiving = this.#receiving;
    const answered = this.#head !== undefined || this.#filled > 0;
    const stale = receiving !== undefined && !answered && this.#carried > 0;
    this.#receiving = undefined;
    if (receiving !== undefined && !stale) {
      const cause = this.#cause === "" ? "the connection ended early" : this.#cause;
      receiving.finish(failure(answered ? "truncated" : "unavailable", cause));
    }
    this.#owner.closed(this, stale ? receiving : undefined);
  }
}
