/**
 * Agents of node:http and node:https whose sockets are read in long steps.
 *
 * Node reads a socket 64 KiB at a time, each time into memory of its own, so that a chunk of 8 MiB costs 128 trips
 * through its streams and as many allocations for the collector. Here each socket is read into one buffer that it
 * keeps, as far as the kernel has bytes. All else is Node's: its parser, its pool, its timeouts.
 */
import { Agent as HttpAgent } from "node:http";
import { Agent as HttpsAgent } from "node:https";
import { type OnReadOpts, Socket } from "node:net";
import type { Duplex } from "node:stream";
import { assert } from "../../src/assert.ts";
import { LIMITS } from "../../src/limits.ts";

/** Reads of one socket. */
class LongReads {
  #socket: Socket | undefined;
  #buffer = Buffer.allocUnsafeSlow(LIMITS.socketReadBytes);

  /** What Node wants to be told when it makes the socket. */
  readonly options: { readonly onread: OnReadOpts } = {
    onread: { buffer: () => this.#buffer, callback: (length) => this.#pass(length) },
  };

  attach(stream: Duplex | null | undefined): void {
    assert(stream instanceof Socket, "an agent connects at once");
    this.#socket = stream;
  }

  /** Passes what was read to whoever listens; false: he asks for a pause. */
  #pass(length: number): boolean {
    const socket = this.#socket;
    assert(socket !== undefined && length <= this.#buffer.length, "a read is of its socket");
    const more = socket.push(this.#buffer.subarray(0, length));
    // The HTTP parser copies what it passes on. What waits in the stream instead keeps the memory it lies in.
    if (socket.readableLength > 0) this.#buffer = Buffer.allocUnsafeSlow(LIMITS.socketReadBytes);
    return more;
  }
}

type Connect<A extends HttpAgent> = Parameters<A["createConnection"]>;

export class WideHttpAgent extends HttpAgent {
  override createConnection(...[options, connected]: Connect<HttpAgent>) {
    const reads = new LongReads();
    const stream = super.createConnection({ ...options, ...reads.options }, connected);
    reads.attach(stream);
    return stream;
  }
}

export class WideHttpsAgent extends HttpsAgent {
  override createConnection(...[options, connected]: Connect<HttpsAgent>) {
    const reads = new LongReads();
    const stream = super.createConnection({ ...options, ...reads.options }, connected);
    reads.attach(stream);
    return stream;
  }
}
