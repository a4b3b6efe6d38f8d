/**
 * GETs of payload over connections of their own (http-connection.ts): bounded, kept, opened anew where the server has
 * closed one meanwhile. Node's HTTP client reads a socket 64 KiB at a time into new memory, from where it is copied
 * twice: 1.2 to 2 CPU seconds a GB, on the thread that answers engines.
 */
import { connect, isIP, type OnReadOpts, type Socket } from "node:net";
import { connect as connectTls } from "node:tls";
import { assert } from "../../src/assert.ts";
import { LIMITS } from "../../src/limits.ts";
import { type HttpAnswer, requestHead, UNFIT } from "./http-answer.ts";
import { type ConnectionOwner, HttpConnection } from "./http-connection.ts";
import { type CallLimits, failure, type Outcome } from "./object-store.ts";
import { type Accept, Receiving } from "./receiving.ts";

export interface ReceiverOptions {
  readonly secure: boolean;
  readonly hostname: string;
  readonly port: number;
  readonly connectionsMax: number;
  /** A connection may be silent for so long in the middle of an exchange. */
  readonly idleMs: number;
  /** Certificate authorities in place of the system's (PEM). */
  readonly certificateAuthorities?: string | undefined;
}

/** One GET. */
export interface ReceiveCall {
  /** Encoded, with query. */
  readonly path: string;
  readonly headers: Readonly<Record<string, string>>;
  /** Where the body of a 2xx answer goes: exactly so many bytes. */
  readonly into: Uint8Array;
  readonly accept: Accept;
}

/** As Node's agents: a peer that vanished is found out. */
const PROBE_MS = 1_000;

export class HttpReceiver implements ConnectionOwner {
  readonly #options: ReceiverOptions;
  readonly #open = new Set<HttpConnection>();
  /** The last one used goes first, so that the others may end. */
  readonly #idle: HttpConnection[] = [];
  readonly #waiting = new Set<Receiving>();
  /** Spares the next TLS connection half of its handshake. */
  #session: Buffer | undefined;
  #closed = false;

  constructor(options: ReceiverOptions) {
    assert(options.connectionsMax >= 1, "at least one connection");
    assert(options.port >= 1 && options.port <= 65_535, "a port has 16 bits");
    this.#options = options;
  }

  /**
   * Resolves with whatever the server answered, or with timeout, cancelled, truncated, protocol, unavailable, busy or
   * what accept() says. After that nothing touches `into`.
   */
  receive(call: ReceiveCall, limits: CallLimits): Promise<Outcome<HttpAnswer>> {
    const request = requestHead("GET", call.path, call.headers);
    if (request === undefined) return Promise.resolve(failure("refused", UNFIT));
    if (this.#waiting.size >= LIMITS.remoteWaitingMax) {
      return Promise.resolve(failure("busy", `${this.#waiting.size} reads wait`));
    }
    const receiving = new Receiving(request, call.into, call.accept, limits);
    if (!receiving.done) this.#place(receiving);
    return receiving.ended;
  }

  /** What is under way ends, as a fault. */
  close(): void {
    this.#closed = true;
    for (const receiving of this.#waiting) receiving.finish(failure("cancelled", "closed"));
    for (const connection of this.#open) connection.destroy();
  }

  idle(connection: HttpConnection): void {
    const next = this.#nextWaiting();
    if (next === undefined) this.#idle.push(connection);
    else connection.begin(next);
  }

  closed(connection: HttpConnection, stale: Receiving | undefined): void {
    assert(this.#open.delete(connection), "a connection closes once");
    const at = this.#idle.indexOf(connection);
    if (at !== -1) this.#idle.splice(at, 1);
    // Other idle ones may be as stale; each is one less, and the end is a fresh one.
    const next = stale ?? this.#nextWaiting();
    if (next !== undefined) this.#place(next);
  }

  #place(receiving: Receiving): void {
    if (this.#closed) {
      receiving.finish(failure("cancelled", "closed"));
      return;
    }
    const connection = this.#nextIdle() ?? this.#connect();
    if (connection !== undefined) {
      connection.begin(receiving);
      return;
    }
    this.#waiting.add(receiving);
    receiving.holdBy(() => this.#waiting.delete(receiving));
  }

  /** One that is destroyed stays until it has closed. */
  #nextIdle(): HttpConnection | undefined {
    let connection = this.#idle.pop();
    while (connection?.destroyed === true) connection = this.#idle.pop();
    return connection;
  }

  #nextWaiting(): Receiving | undefined {
    const [next] = this.#waiting;
    if (next !== undefined) this.#waiting.delete(next);
    return next;
  }

  /** undefined: there are as many as may be. */
  #connect(): HttpConnection | undefined {
    const { connectionsMax, idleMs } = this.#options;
    if (this.#open.size >= connectionsMax) return undefined;
    const connection = new HttpConnection((onread) => this.#openSocket(onread), idleMs, this);
    this.#open.add(connection);
    return connection;
  }

  #openSocket(onread: OnReadOpts): Socket {
    const { secure, hostname: host, port, certificateAuthorities: ca } = this.#options;
    const place = { host, port, onread };
    if (!secure) {
      return connect({
        ...place,
        noDelay: true,
        keepAlive: true,
        keepAliveInitialDelay: PROBE_MS,
      });
    }
    const socket = connectTls({
      ...place,
      ALPNProtocols: ["http/1.1"],
      ...(isIP(host) === 0 ? { servername: host } : {}),
      ...(ca === undefined ? {} : { ca }),
      ...(this.#session === undefined ? {} : { session: this.#session }),
    });
    // connect() of TLS takes neither as an option.
    socket.setNoDelay(true).setKeepAlive(true, PROBE_MS);
    socket.on("session", (session) => {
      this.#session = session;
    });
    // A server that breaks off what it is to resume is offered nothing the next time.
    socket.on("error", () => {
      this.#session = undefined;
    });
    return socket;
  }
}
