/**
 * One connection as bytes: sends anything, cuts what comes back into frames and keeps it. Two carriers: a plain
 * node:net socket, which shares no code with the daemon, and the addon's client, which can pass descriptors.
 */
import { connect, type Socket } from "node:net";
import { loadAddon } from "../../addon/load.ts";
import { decodeCold, emptyHeader, readHeader } from "../../src/engine-api/codec.ts";
import { type ErrorBody, FLAG, HEADER_BYTES, MAGIC, OP } from "../../src/engine-api/protocol.ts";
import { ERRORS, type ErrorName } from "../../src/errors.ts";
import { PATIENCE_MS, within } from "./eventually.ts";
import { coldFrame, type FrameFields, frameOf } from "./frames.ts";

export interface Frame {
  readonly op: number;
  readonly flags: number;
  readonly tag: number;
  readonly id: number;
  readonly count: number;
  readonly namespace: number;
  readonly body: Uint8Array;
  readonly view: DataView;
  /** Descriptor that came with it, −1 for none. */
  readonly descriptor: number;
}

interface Waiter {
  readonly matches: (frame: Frame) => boolean;
  readonly resolve: (frame: Frame) => void;
  readonly reject: (error: Error) => void;
}

/** How bytes leave; what comes back goes to the wire's `#received`. */
interface Carrier {
  send(bytes: Uint8Array, descriptor: number): boolean;
  close(): void;
}

export class ConnectionClosed extends Error {
  override readonly name = "ConnectionClosed";
}

export class Wire {
  /** Frames that nobody waited for, oldest first. */
  readonly frames: Frame[] = [];
  /** Resolves when the daemon or this side has closed. */
  readonly closed: Promise<void>;
  isClosed = false;
  /** Counts what came in, waited for or not. */
  received = 0;
  readonly #waiters: Waiter[] = [];
  #carrier: Carrier | undefined;
  #socket: Socket | undefined;
  #partial = new Uint8Array(0);
  #lastTag = 0;
  #markClosed: () => void = () => undefined;

  private constructor() {
    this.closed = new Promise((resolve) => {
      this.#markClosed = resolve;
    });
  }

  /** Over node:net; the peer of SO_PEERCRED is this process. */
  static async connect(path: string): Promise<Wire> {
    const wire = new Wire();
    const socket = connect(path);
    await new Promise<void>((resolve, reject) => {
      socket.once("connect", resolve);
      socket.once("error", reject);
    });
    socket.on("data", (chunk: Uint8Array) => wire.#receive(chunk));
    socket.on("error", () => wire.#end());
    socket.on("close", () => wire.#end());
    wire.#socket = socket;
    wire.#carrier = {
      send: (bytes) => socket.write(bytes),
      close: () => socket.destroy(),
    };
    return wire;
  }

  /** Over the addon's client, which carries descriptors both ways. */
  static open(path: string): Wire {
    const addon = loadAddon();
    const wire = new Wire();
    const client = addon.clientOpen(
      path,
      (frame, descriptor) => wire.#frame(frame.slice(), descriptor),
      () => wire.#end(),
    );
    wire.#carrier = {
      send: (bytes, descriptor) => addon.clientSend(client, bytes, 0, bytes.byteLength, descriptor),
      close: () => {
        addon.clientClose(client);
        wire.#end();
      },
    };
    return wire;
  }

  #receive(chunk: Uint8Array): void {
    let bytes = chunk;
    if (this.#partial.byteLength > 0) {
      bytes = new Uint8Array(this.#partial.byteLength + chunk.byteLength);
      bytes.set(this.#partial);
      bytes.set(chunk, this.#partial.byteLength);
    }
    let at = 0;
    while (bytes.byteLength - at >= HEADER_BYTES) {
      const view = new DataView(bytes.buffer, bytes.byteOffset + at);
      if (view.getUint32(0, true) !== MAGIC) throw new Error("the daemon sent a bad magic");
      const total = HEADER_BYTES + view.getUint32(8, true);
      if (bytes.byteLength - at < total) break;
      this.#frame(bytes.slice(at, at + total), -1);
      at += total;
    }
    this.#partial = bytes.slice(at);
  }

  #frame(bytes: Uint8Array, descriptor: number): void {
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    const header = emptyHeader();
    readHeader(view, 0, header);
    const body = bytes.subarray(HEADER_BYTES);
    const frame: Frame = {
      ...header,
      body,
      view: new DataView(body.buffer, body.byteOffset, body.byteLength),
      descriptor,
    };
    this.received += 1;
    const index = this.#waiters.findIndex(({ matches }) => matches(frame));
    if (index < 0) this.frames.push(frame);
    else this.#waiters.splice(index, 1)[0]!.resolve(frame);
  }

  #end(): void {
    if (this.isClosed) return;
    this.isClosed = true;
    for (const waiter of this.#waiters) waiter.reject(new ConnectionClosed("connection closed"));
    this.#waiters.length = 0;
    this.#markClosed();
  }

  /** Sends bytes as they are. */
  send(bytes: Uint8Array, descriptor = -1): boolean {
    if (this.#carrier === undefined) throw new Error("not connected");
    return this.#carrier.send(bytes, descriptor);
  }

  /** Sends and waits until the kernel has taken everything; node:net only. */
  async flush(bytes: Uint8Array): Promise<void> {
    const socket = this.#socket;
    if (socket === undefined) throw new Error("only over node:net");
    if (this.isClosed) return;
    await Promise.race([
      this.closed,
      new Promise<void>((resolve) => {
        socket.write(bytes, () => resolve());
      }),
    ]);
  }

  /** Stops reading, so that the daemon's replies pile up; node:net only. */
  pause(): void {
    this.#socket?.pause();
  }

  resume(): void {
    this.#socket?.resume();
  }

  close(): void {
    this.#carrier?.close();
  }

  nextTag(): number {
    this.#lastTag += 1;
    return this.#lastTag;
  }

  /** The first frame, past or future, that matches; it is taken. */
  take(matches: (frame: Frame) => boolean, patienceMs = PATIENCE_MS): Promise<Frame> {
    const index = this.frames.findIndex(matches);
    if (index >= 0) return Promise.resolve(this.frames.splice(index, 1)[0]!);
    if (this.isClosed) return Promise.reject(new ConnectionClosed("connection closed"));
    const frame = new Promise<Frame>((resolve, reject) => {
      this.#waiters.push({ matches, resolve, reject });
    });
    return within("a frame of the daemon", frame, patienceMs);
  }

  /** The reply with this tag that is no completion. */
  reply(tag: number): Promise<Frame> {
    return this.take((frame) => frame.tag === tag && (frame.flags & FLAG.COMPLETION) === 0);
  }

  completion(tag: number): Promise<Frame> {
    return this.take((frame) => frame.tag === tag && (frame.flags & FLAG.COMPLETION) !== 0);
  }

  /** Sends one frame with a tag of its own and waits for its reply. */
  call(fields: FrameFields, descriptor = -1): Promise<Frame> {
    const tag = fields.tag ?? this.nextTag();
    this.send(frameOf({ ...fields, tag }), descriptor);
    return this.reply(tag);
  }

  cold(op: number, body: object, id = 0, descriptor = -1): Promise<Frame> {
    const tag = this.nextTag();
    const flags = descriptor === -1 ? 0 : FLAG.DESCRIPTOR;
    this.send(coldFrame(op, flags, tag, id, 0, body), descriptor);
    return this.reply(tag);
  }

  /** Proof that the connection still works: a HEARTBEAT and its answer. */
  async beat(): Promise<Frame> {
    const frame = await this.call({ op: OP.HEARTBEAT });
    if (isError(frame)) throw new Error(`HEARTBEAT answered ${errorOf(frame).name}`);
    return frame;
  }
}

export function isError(frame: Frame): boolean {
  return (frame.flags & FLAG.ERROR) !== 0;
}

/** The error of a frame, held against the one table: name, code, retryable flag and action. */
export function errorOf(frame: Frame): ErrorBody {
  if (!isError(frame)) throw new Error(`operation ${frame.op} was answered without an error`);
  const body = decodeCold(frame.body) as unknown as ErrorBody;
  const row = ERRORS[body.name as ErrorName];
  if (row === undefined) throw new Error(`${body.name} is not in the error table`);
  if (body.code !== row.code || body.retryable !== row.retryable || body.action !== row.action) {
    throw new Error(`${body.name} does not agree with the error table: ${JSON.stringify(body)}`);
  }
  return body;
}

/** Name of the error of a frame, "none" for an answer that is none. */
export function errorName(frame: Frame): string {
  return isError(frame) ? errorOf(frame).name : "none";
}
