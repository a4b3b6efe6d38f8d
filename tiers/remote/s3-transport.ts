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
import { Ending } from "./ending.ts";
import { headersFit, type HttpAnswer, UNFIT } from "./http-answer.ts";
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

  /** Resolves with whatever the server answered, or with timeout, cancelled, truncated, unavailable or refused. */
  async exchange(call: HttpCall, limits: CallLimits): Promise<Outcome<HttpAnswer>> {
    if (!headersFit(call.headers)) return failure("refused", UNFIT);
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

/** One request in flight. What is unfinished when it ends is destroyed. */
class Exchange {
  readonly ended: Promise<Outcome<HttpAnswer>>;
  readonly #request: ClientRequest;
  readonly #ending: Ending<HttpAnswer>;
  #answered = false;
  #whole = false;
  #stale = false;
  #text = "";

  constructor(request: ClientRequest, call: HttpCall, limits: CallLimits, idleMs: number) {
    this.#request = request;
    this.#ending = new Ending(limits);
    this.ended = this.#ending.ended;
    request.on("error", (error) => this.#failed(error));
    if (this.#ending.done) {
      request.destroy();
      return;
    }
    this.#ending.holdBy(() => this.#letGo());
    request.on("response", (response) => this.#onResponse(response));
    const silent = failure("timeout", `silent for ${idleMs} ms`);
    request.setTimeout(idleMs, () => this.#ending.finish(silent));
    if (call.body === undefined) request.end();
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
      if (!response.complete)
        this.#ending.finish(failure("truncated", "the connection ended early"));
    });
  }

  #onEnd(response: IncomingMessage): void {
    if (!response.complete) {
      this.#ending.finish(failure("truncated", "the answer ended early"));
      return;
    }
    const status = response.statusCode ?? 0;
    this.#whole = true;
    this.#ending.finish(success({ status, headers: response.headers, text: this.#text }));
  }

  #failed(error: Error): void {
    const code = (error as NodeJS.ErrnoException).code ?? error.name;
    const gone = code === "ECONNRESET" || code === "EPIPE";
    if (!this.#ending.done && !this.#answered && this.#request.reusedSocket && gone)
      this.#stale = true;
    const fault = this.#answered ? "truncated" : "unavailable";
    this.#ending.finish(failure(fault, `${code}: ${error.message}`));
  }

  /**
   * A whole exchange gives its connection back to the agent. One that is not ends it, and so does an answer that came
   * before the body had gone out: what is left of that would be read as the next request.
   */
  #letGo(): void {
    if (!this.#whole || !this.#request.writableFinished) this.#request.destroy();
  }
}
