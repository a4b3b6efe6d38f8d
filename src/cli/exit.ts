/** Exit codes, and errors as the command line shows them. */
import type { Problem } from "../config/fields.ts";
import { CairnError } from "../errors.ts";

export const EXIT = { OK: 0, FAILURE: 1, USAGE: 2 } as const;

/** The command line itself is wrong: exit code 2. */
export class UsageError extends Error {
  override readonly name = "UsageError";
}

export interface FailureBody {
  readonly code: number;
  readonly name: string;
  readonly retryable: boolean;
  readonly message: string;
  readonly action: string;
  readonly problems?: readonly Problem[];
}

/** node:util's parseArgs throws plain errors with such codes; they are the user's. */
export function asUsage(error: unknown): unknown {
  const code = (error as { readonly code?: unknown } | null)?.code;
  const parsing = typeof code === "string" && code.startsWith("ERR_PARSE_ARGS");
  return parsing && error instanceof Error ? new UsageError(error.message) : error;
}

/** Any thrown thing as a row of the error table; a usage error has code 0. */
export function failureBody(error: unknown): FailureBody {
  if (error instanceof UsageError) {
    const { message } = error;
    return { code: 0, name: "usage", retryable: false, message, action: "See `cairn help`." };
  }
  const known = error instanceof CairnError ? error : new CairnError("internal", String(error));
  const { code, retryable, action } = known.row;
  const body = { code, name: known.errorName, retryable, message: known.message, action };
  // ConfigError carries its list; it is read by shape so that this file does not load the schema.
  const { problems } = known as { readonly problems?: readonly Problem[] };
  return problems === undefined ? body : { ...body, problems };
}
