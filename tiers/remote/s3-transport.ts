/**
 * One HTTP exchange whose body goes out from the caller's memory without a copy, and whose answer is short. Payload
 * that comes in has connections of its own (http-receiver.ts). Knows HTTP, deadlines and sockets; nothing of S3.
 */
import {
  Agent as HttpAgent,
  type ClientRequest,
  type IncomingMessage,
  request as requestHttp,
} from "node:http";
import { Agent as HttpsAgent, request as requestHttps } from "node:https";
import { assert } from "../../src/assert.ts";
import { LIMITS } from "../../src/limits.ts";
import type { HttpAnswer } from "./http-answer.ts";
import { type CallLimits, failure, type Outcome, success } from "./object-store.ts";

export interface HttpCall {
  readonly protocol: string;
  readonly hostname: string;
  readonly port: number | undefined;
  /** Encoded path with query. */
  readonly path: string;
  readonly method: string;
  readonly headers: Readonly<Record<string, string>>;
  readonly body?: Uint8Array | undefined;
}

export interface TransportOptions {
  readonly socketsMax: number;
  /** A socket may be silent for so long in the middle of an exchange. */
  readonly idleMs: number;
  /** Certificate authorities in place of the system's (PEM). */
  readonly certificateAuthorities?: string | undefined;
}

export class HttpTransport {
  readonly httpAgent: HttpAgent;
  readonly httpsAgent: HttpsAgent;
  readonly #idleMs: number;

  constructor(options: TransportOptions) {
    assert(options.socketsMax >= 1, "at least one socket");
    const shared = {
      keepAlive: true,
      maxSockets: options.socketsMax,
      maxFreeSockets: options.socketsMax,
      scheduling: "lifo" as const,
    };
    const ca = options.certificateAuthorities;
    this.httpAgent = new HttpAgent(shared);
    this.httpsAgent = new HttpsAgent(ca === undefined ? shared : { ...shared, ca });
    this.#idleMs = options.idleMs;
  }

  /** Resolves with whatever the server answered, or with timeout, cancelled, truncated or unavailable. */
  async exchange(call: HttpCall, limits: CallLimits): Promise<Outcome<HttpAnswer>> {
    const began = performance.now();
    const first = new Exchange(this.#open(call), call, limits, this.#idleMs);
    const outcome = await first.ended;
    // The server had closed an idle connection: that is nobody's fault, and a fresh one tells more.
    if (!first.stale) return outcome;
    const leftMs = Math.max(1, limits.deadlineMs - (performance.now() - began));
    const rest = { deadlineMs: leftMs, signal: limits.signal };
    return new Exchange(this.#open(call), call, rest, this.#idleMs).ended;
  }

  close(): void {
    this.httpAgent.destroy();
    this.httpsAgent.destroy();
  }

  #open(call: HttpCall): ClientRequest {
    const { hostname, method, path } = call;
    const options = { hostname, method, path, headers: call.headers, port: call.port ?? null };
    return call.protocol === "https:"
      ? requestHttps({ ...options, agent: this.httpsAgent })
      : requestHttp({ ...options, agent: this.httpAgent });
  }
}

/** One request in flight. Every path leads to finish(), which destroys what is unfinished. */
class Exchange {
  readonly ended: Promise<Outcome<HttpAnswer>>;
  readonly #request: ClientRequest;
  readonly #limits: CallLimits;
  readonly #timer: NodeJS.Timeout;
  readonly #onAbort = (): void => this.#finish(failure("cancelled", "cancelled"));
  #resolve: (outcome: Outcome<HttpAnswer>) => void = () => undefined;
  #done = false;
  #answered = false;
  #stale = false;
  #text = "";

  constructor(request: ClientRequest, call: HttpCall, limits: CallLimits, idleMs: number) {
    this.#request = request;
    this.#limits = limits;
    this.ended = new Promise((resolve) => {
      this.#resolve = resolve;
    });
    const late = (): void => this.#finish(failure("timeout", "past the deadline"));
    this.#timer = setTimeout(late, limits.deadlineMs);
    limits.signal?.addEventListener("abort", this.#onAbort, { once: true });
    request.on("error", (error) => this.#failed(error));
    request.on("response", (response) => this.#onResponse(response));
    request.setTimeout(idleMs, () => this.#finish(failure("timeout", `silent for ${idleMs} ms`)));
    if (limits.signal?.aborted === true) this.#onAbort();
    else if (call.body === undefined) request.end();
    else request.end(call.body);
  }

  /** A kept-alive connection was gone before anything was answered. */
  get stale(): boolean {
    return this.#stale;
  }

  #onResponse(response: IncomingMessage): void {
    this.#answered = true;
    response.on("error", (error) => this.#failed(error));
    response.setEncoding("utf8");
    response.on("data", (chunk: string) => {
      if (this.#text.length < LIMITS.storeErrorCharactersMax) this.#text += chunk;
    });
    response.on("end", () => this.#onEnd(response));
    response.on("close", () => {
      if (!response.complete) this.#finish(failure("truncated", "the connection ended early"));
    });
  }

  #onEnd(response: IncomingMessage): void {
    if (!response.complete) {
      this.#finish(failure("truncated", "the answer ended early"));
      return;
    }
    const status = response.statusCode ?? 0;
    this.#finish(success({ status, headers: response.headers, text: this.#text }));
  }

  #failed(error: Error): void {
    const code = (error as NodeJS.ErrnoException).code ?? error.name;
    const gone = code === "ECONNRESET" || code === "EPIPE";
    if (!this.#done && !this.#answered && this.#request.reusedSocket && gone) this.#stale = true;
    const fault = this.#answered ? "truncated" : "unavailable";
    this.#finish(failure(fault, `${code}: ${error.message}`));
  }

  #finish(outcome: Outcome<HttpAnswer>): void {
    if (this.#done) return;
    this.#done = true;
    clearTimeout(this.#timer);
    this.#limits.signal?.removeEventListener("abort", this.#onAbort);
    // A whole exchange gives its connection back to the agent; so does an answer that came before the body had
    // gone out not: what is left of the body would be read as the next request.
    const whole = outcome.ok && this.#request.writableFinished;
    if (!whole) this.#request.destroy();
    this.#resolve(outcome);
  }
}
