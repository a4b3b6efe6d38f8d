/** One thing doctor looked at. */
export interface Finding {
  readonly check: string;
  /** `absent`: not there and not needed; `fail`: the daemon cannot run without it. */
  readonly status: "ok" | "absent" | "warn" | "fail";
  /** What was found, with figures. */
  readonly found: string;
  /** What to do about it; null where nothing is to be done. */
  readonly fix: string | null;
  /** Where it was seen: a path of /proc or /sys, a library call, a library path. */
  readonly source: string;
}

export function finding(
  check: string,
  status: Finding["status"],
  found: string,
  fix: string | null,
  source: string,
): Finding {
  return { check, status, found, fix, source };
}
