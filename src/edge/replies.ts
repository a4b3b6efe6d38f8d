/** Every HTTP error body, built from the one error table; the same fields as an error frame on the socket. */
import type { Problem } from "../config/fields.ts";
import { ConfigError } from "../config/load.ts";
import { CairnError, ERRORS, type ErrorName } from "../errors.ts";
import type { ErrorReply } from "./contract.ts";

export interface HttpErrorBody {
  readonly code: number;
  readonly name: ErrorName;
  readonly retryable: boolean;
  readonly message: string;
  readonly action: string;
  readonly detail: number;
  readonly problems?: readonly Problem[];
}

/** An error that came back over the worker's channel, with its row and, for configInvalid, its problems. */
export class ReplyError extends CairnError {
  readonly problems: readonly Problem[] | undefined;

  constructor(reply: ErrorReply) {
    super(reply.name, reply.message, reply.detail);
    this.problems = reply.problems;
  }
}

export function replyOf(error: unknown): ErrorReply {
  if (error instanceof ConfigError || error instanceof ReplyError) {
    const { errorName: name, message, detail, problems } = error;
    return problems === undefined ? { name, message, detail } : { name, message, detail, problems };
  }
  if (error instanceof CairnError)
    return { name: error.errorName, message: error.message, detail: error.detail };
  return { name: "internal", message: String(error), detail: 0 };
}

export function bodyOf(reply: ErrorReply): HttpErrorBody {
  const { code, retryable, action } = ERRORS[reply.name];
  const { name, message, detail, problems } = reply;
  const body = { code, name, retryable, message, action, detail };
  return problems === undefined ? body : { ...body, problems };
}

interface FastifyFault {
  readonly code?: unknown;
  readonly statusCode?: unknown;
  readonly message: string;
}

/** Fastify's own errors (parser, validation, limits) as rows of our table. */
export function faultOf(error: unknown): ErrorReply {
  if (error instanceof CairnError || !(error instanceof Error)) return replyOf(error);
  const fault = error as FastifyFault;
  if (fault.code === "FST_ERR_CTP_BODY_TOO_LARGE")
    return { name: "bodyTooLarge", message: fault.message, detail: 0 };
  const status = typeof fault.statusCode === "number" ? fault.statusCode : 500;
  if (status >= 400 && status < 500)
    return { name: "badRequest", message: fault.message, detail: status };
  return replyOf(error);
}
