/**
 * The seam between the remote tier and whatever keeps its objects. A store knows names, bytes and ages, and
 * nothing of blocks. Every call takes a deadline and answers with a typed outcome: what a store, its client
 * library or the network did wrong becomes one of FAULTS, never an exception. A thrown error is a bug here.
 *
 * Names consist of `a-z 0-9 / -`, without empty parts. Objects are written once: put() never
 * replaces, so the first writer wins and two nodes cannot race.
 */
import { assert } from "../../src/assert.ts";
import { LIMITS } from "../../src/limits.ts";

/**
 * Why a call did not succeed, and what follows from it.
 * retry: another attempt may succeed at once. health: it speaks against the store, not against the call.
 */
export const FAULTS = {
  /** No such object. An answer, not a fault of the store. */
  missing: { retry: false, health: false },
  /** The object is shorter than the range, or not as long as asked for. */
  short: { retry: false, health: false },
  /** The caller's signal fired. */
  cancelled: { retry: false, health: false },
  /** A bound of this process is reached (queue, operations of a stuck directory). */
  busy: { retry: false, health: false },
  /** The store did not answer in time, or went quiet in the middle. */
  timeout: { retry: true, health: true },
  /** Asked to slow down (429, 503). */
  throttled: { retry: true, health: true },
  /** Connection refused, reset, 5xx, EIO. */
  unavailable: { retry: true, health: true },
  /** The body ended before its announced length. */
  truncated: { retry: true, health: true },
  /** The breaker is open, or the store takes no objects and this is one: not asked at all. */
  open: { retry: false, health: false },
  /** Not permitted, read-only, no such bucket, signature refused: an operator has to look. */
  refused: { retry: false, health: true },
  /** No space left at the store. */
  full: { retry: false, health: false },
  /** An answer that the protocol does not allow. */
  protocol: { retry: false, health: true },
} as const satisfies Record<string, { readonly retry: boolean; readonly health: boolean }>;

export type Fault = keyof typeof FAULTS;
export const FAULT_NAMES = Object.keys(FAULTS) as readonly Fault[];

export interface Failure {
  readonly ok: false;
  readonly fault: Fault;
  /** For the log and the status page; holds no credential. */
  readonly message: string;
  /**
   * Set when an operation that cannot be cancelled still owns the caller's buffer (a read from a directory that
   * hangs): the buffer may be used again when this resolves.
   */
  readonly released?: Promise<void>;
}

export type Outcome<T> = { readonly ok: true; readonly value: T } | Failure;

export interface CallLimits {
  /** Milliseconds from now; the call has ended by then. */
  readonly deadlineMs: number;
  readonly signal?: AbortSignal | undefined;
}

export interface ObjectInfo {
  readonly bytes: number;
  /** Unix time by the store's clock. */
  readonly modifiedMs: number;
}

export interface ObjectEntry extends ObjectInfo {
  readonly name: string;
}

export interface ObjectPage {
  readonly entries: readonly ObjectEntry[];
  /** Give it to the next list() call; absent on the last page. */
  readonly cursor: string | undefined;
}

export interface ObjectStore {
  /** "s3 bucket kv at https://…", "directory /mnt/kv": for logs and the status page. */
  readonly description: string;
  /** Reads bytes [from, from + into.length) into `into`, all or nothing; the value is the object's length. */
  get(name: string, from: number, into: Uint8Array, limits: CallLimits): Promise<Outcome<number>>;
  /** Writes the object unless the name exists. The body must not change until the call has ended. */
  put(name: string, body: Uint8Array, limits: CallLimits): Promise<Outcome<"stored" | "present">>;
  head(name: string, limits: CallLimits): Promise<Outcome<ObjectInfo>>;
  /** A page of the objects whose names begin with `prefix`, in no promised order. Foreign files are left out. */
  list(
    prefix: string,
    cursor: string | undefined,
    limits: CallLimits,
  ): Promise<Outcome<ObjectPage>>;
  /** A missing object counts as deleted: another node was faster. */
  delete(name: string, limits: CallLimits): Promise<Outcome<"deleted" | "missing">>;
  /** Reachable, and ours to read? The probe of a store that was taken for away. */
  check(limits: CallLimits): Promise<Outcome<"reachable">>;
  /** Removes what writers that died left behind before `beforeMs` (Unix time); how many. */
  sweep(beforeMs: number, limits: CallLimits): Promise<Outcome<number>>;
  close(): Promise<void>;
}

const OBJECT_NAME = /^[a-z0-9-]+(?:\/[a-z0-9-]+)*$/;

/** Whether a text is a name of this seam. Safe as a file name once its slashes are replaced. */
export function isObjectName(name: string): boolean {
  return name.length <= LIMITS.objectNameCharactersMax && OBJECT_NAME.test(name);
}

const KEY_PREFIX = /^(?:[A-Za-z0-9._-]+\/)*[A-Za-z0-9._-]*$/;

/** Whether a text may stand in front of names in a bucket: parts of safe characters, none of which climbs. */
export function isKeyPrefix(prefix: string): boolean {
  const climbs = prefix.split("/").some((part) => part === "." || part === "..");
  return !climbs && KEY_PREFIX.test(prefix);
}

export function assertObjectName(name: string): void {
  assert(isObjectName(name), "an object name keeps to its alphabet");
}

export function success<T>(value: T): Outcome<T> {
  return { ok: true, value };
}

export function failure(fault: Fault, message: string, released?: Promise<void>): Failure {
  return released === undefined
    ? { ok: false, fault, message }
    : { ok: false, fault, message, released };
}
