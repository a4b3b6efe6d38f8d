/** What an S3 server's status and error code mean to the remote tier. Pure. */
import type { Fault } from "./object-store.ts";

/** Codes that decide whatever the status says. */
const FAULT_OF_CODE: Readonly<Record<string, Fault>> = {
  NoSuchKey: "missing",
  NotFound: "missing",
  NoSuchBucket: "refused",
  InvalidRange: "short",
  SlowDown: "throttled",
  SlowDownRead: "throttled",
  SlowDownWrite: "throttled",
  Throttling: "throttled",
  ThrottlingException: "throttled",
  RequestLimitExceeded: "throttled",
  TooManyRequests: "throttled",
  ServiceUnavailable: "throttled",
  RequestTimeout: "timeout",
  // A conditional PUT met another one under way: the next attempt finds its object.
  ConditionalRequestConflict: "unavailable",
  OperationAborted: "unavailable",
  // The body was damaged on its way.
  BadDigest: "unavailable",
  XAmzContentSHA256Mismatch: "unavailable",
  IncompleteBody: "unavailable",
  QuotaExceeded: "full",
  XMinioStorageFull: "full",
  XMinioAdminBucketQuotaExceeded: "full",
};

/** Fault of an answer that is not a success; code "" where the body named none. */
export function faultOfAnswer(status: number, code: string): Fault {
  const known = FAULT_OF_CODE[code];
  if (known !== undefined) return known;
  // Some servers answer 404 for a user they do not know: only a bare 404 says that the object is missing.
  if (status === 404) return code === "" ? "missing" : "refused";
  if (status === 416) return "short";
  if (status === 408) return "timeout";
  if (status === 409) return "unavailable";
  if (status === 429 || status === 503) return "throttled";
  if (status === 507) return "full";
  if (status >= 500) return "unavailable";
  return status >= 300 ? "refused" : "protocol";
}

/** <Code> of an error document; "" without one. */
export function errorCodeOf(text: string): string {
  return /<Code>([A-Za-z0-9.]{1,64})<\/Code>/.exec(text)?.[1] ?? "";
}

/** Servers refuse signatures that are 15 minutes off; below this a 403 has another cause. */
const SKEW_MS_MIN = 4 * 60_000;

/**
 * Milliseconds to add to our clock, learnt from a refused request's Date header; undefined when the clock is not the
 * reason, or was corrected already.
 */
export function clockOffsetOf(
  status: number,
  dateHeader: string | undefined,
  signedAtMs: number,
  nowMs: number,
): number | undefined {
  if (status !== 403 && status !== 400) return undefined;
  const serverMs = Date.parse(dateHeader ?? "");
  if (Number.isNaN(serverMs) || Math.abs(serverMs - signedAtMs) < SKEW_MS_MIN) return undefined;
  return serverMs - nowMs;
}

/** Whole length in a Content-Range header that names exactly [from, from + length); undefined otherwise. */
export function totalOfContentRange(
  header: string | undefined,
  from: number,
  length: number,
): number | undefined {
  const found = /^bytes (\d+)-(\d+)\/(\d+)$/.exec(header ?? "");
  if (found === null) return undefined;
  const exact = Number(found[1]) === from && Number(found[2]) === from + length - 1;
  return exact ? Number(found[3]) : undefined;
}
