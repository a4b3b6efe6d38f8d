/** One read of payload, as its caller sees it. */
import type { IncomingHttpHeaders } from "node:http";
import { assert } from "../../src/assert.ts";
import { Ending } from "./ending.ts";
import type { HttpAnswer } from "./http-answer.ts";
import type { CallLimits, Failure } from "./object-store.ts";

/**
 * Looks at status and headers before the body is received; a failure ends the exchange. Queues no microtask that could
 * end it later: over TLS, bytes of the same read may land until those have run.
 */
export type Accept = (status: number, headers: IncomingHttpHeaders) => Failure | undefined;

export class Receiving extends Ending<HttpAnswer> {
  /** The whole request. */
  readonly request: Buffer;
  /** Where the body of a 2xx answer goes: exactly so many bytes. */
  readonly into: Uint8Array;
  readonly accept: Accept;

  constructor(request: Buffer, into: Uint8Array, accept: Accept, limits: CallLimits) {
    super(limits);
    assert(into.length > 0, "payload has bytes");
    this.request = request;
    this.into = into;
    this.accept = accept;
  }
}
