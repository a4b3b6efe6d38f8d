/**
 * Data keys of tenants, for chunks that are sealed (addon/seal.h): where they come from, and which one seals or opens.
 *
 * A key file, or what a command prints (a KMS client, say), has one key a line, the tenant's current one first; the
 * others open what was stored before it:
 *
 *     tenant label base64-of-32-bytes
 *
 * Blank lines and lines that begin with `#` are skipped. A label has 1 to 12 letters, digits, `.`, `_` or `-`. What
 * stands in a stored block is the label and four bytes of a hash of the key: a node that has another key under the
 * same label sees a key it does not have, not a damaged object.
 *
 * Keys are read again at intervals and at a reload. A reading that fails changes nothing: a KMS that is away takes no
 * keys from those who have them. No line of a log ever holds a part of a key.
 */
import { execFile } from "node:child_process";
import { createHash } from "node:crypto";
import { constants } from "node:fs";
import { open } from "node:fs/promises";
import { SEAL_KEY_BYTES, SEAL_KEY_ID_BYTES } from "../../addon/binding.ts";
import { assert } from "../../src/assert.ts";
import { CairnError } from "../../src/errors.ts";
import { LIMITS } from "../../src/limits.ts";
import type { ChunkSealer, ChunkSpace, SealKey } from "./types.ts";

const LABEL = /^[A-Za-z0-9._-]{1,12}$/;
const LABEL_BYTES_MAX = 12;
const PRINT_BYTES = SEAL_KEY_ID_BYTES - LABEL_BYTES_MAX;

export type KeySource =
  | { readonly file: string }
  /** Program and arguments, run without a shell. */
  | { readonly command: readonly string[]; readonly timeoutMs: number };

/** Keys by tenant, the current one first. */
export type TenantKeys = ReadonlyMap<string, readonly SealKey[]>;

/** What stands in a stored block: the label, zero-padded, and four bytes that differ with tenant and key. */
export function keyIdOf(tenant: string, label: string, key: Uint8Array): Uint8Array {
  assert(LABEL.test(label), "a label fits its field");
  assert(key.length === SEAL_KEY_BYTES, "a data key has 32 bytes");
  const hash = createHash("sha256").update(`cairn data key\0${tenant}\0${label}\0`).update(key);
  const id = new Uint8Array(SEAL_KEY_ID_BYTES);
  id.set(new TextEncoder().encode(label));
  id.set(hash.digest().subarray(0, PRINT_BYTES), LABEL_BYTES_MAX);
  return id;
}

/** Throws CairnError configInvalid, which names the line and never what stands in it. */
export function parseKeys(text: string): TenantKeys {
  const tenants = new Map<string, SealKey[]>();
  const labels = new Set<string>();
  for (const [index, raw] of text.split("\n").entries()) {
    const line = raw.trim();
    if (line === "" || line.startsWith("#")) continue;
    const where = `line ${index + 1} of the data keys`;
    const parts = /^(\S.*?)\s+(\S+)\s+(\S+)$/.exec(line);
    if (parts === null) throw invalid(`${where}: expected tenant, label and key`);
    const [, tenant = "", label = "", encoded = ""] = parts;
    if (!LABEL.test(label)) throw invalid(`${where}: the label has not 1 to 12 of A-Za-z0-9._-`);
    const bytes = Uint8Array.from(Buffer.from(encoded, "base64"));
    const exact = Buffer.from(bytes).toString("base64") === encoded;
    if (!exact || bytes.length !== SEAL_KEY_BYTES) {
      throw invalid(`${where}: the key is not ${SEAL_KEY_BYTES} bytes in base64`);
    }
    if (labels.has(`${tenant}\0${label}`)) throw invalid(`${where}: the label is used twice`);
    labels.add(`${tenant}\0${label}`);
    if (labels.size > LIMITS.sealKeysMax)
      throw invalid(`more than ${LIMITS.sealKeysMax} data keys`);
    const keys = tenants.get(tenant) ?? [];
    keys.push({ id: keyIdOf(tenant, label, bytes), bytes });
    tenants.set(tenant, keys);
  }
  if (labels.size === 0) throw invalid("there is no data key");
  return tenants;
}

function invalid(message: string): CairnError {
  return new CairnError("configInvalid", message);
}

/** Throws CairnError directoryUnsafe when it is not ours or open to others, configInvalid when it is too long. */
async function readKeyFile(path: string): Promise<string> {
  const file = await open(path, constants.O_RDONLY);
  try {
    const stat = await file.stat();
    const ours = stat.uid === process.getuid?.();
    if (!stat.isFile() || !ours || (stat.mode & 0o077) !== 0) {
      throw new CairnError("directoryUnsafe", `${path} must be a file of ours with mode 0600`);
    }
    if (stat.size > LIMITS.sealKeyTextBytesMax) throw invalid(`${path} is too long`);
    return await file.readFile("utf8");
  } finally {
    await file.close();
  }
}

/** Throws CairnError configInvalid with the exit code or signal; what the command said on stderr may be secret. */
function runKeyCommand(
  [program, ...parameters]: readonly string[],
  timeoutMs: number,
  signal: AbortSignal,
): Promise<string> {
  assert(program !== undefined, "a command names a program");
  const bounds = { maxBuffer: LIMITS.sealKeyTextBytesMax, timeout: timeoutMs, signal };
  const options = { ...bounds, encoding: "utf8", killSignal: "SIGKILL", shell: false } as const;
  return new Promise((resolve, reject) => {
    const child = execFile(program, [...parameters], options, (error, stdout) => {
      if (error === null) resolve(stdout);
      else reject(invalid(`${program} failed: ${error.code ?? error.signal ?? error.name}`));
    });
    // A command that asks for a password reads the end of its input, not ours.
    child.stdin?.on("error", () => undefined);
    child.stdin?.end();
  });
}

export interface KeyRingOptions {
  readonly source: KeySource;
  /** Milliseconds between readings. */
  readonly refreshMs: number;
  readonly log: (line: string) => void;
}

/** The keys this node has now. */
export class KeyRing implements ChunkSealer {
  readonly name = "gcm";
  readonly overheadBytes = 0;
  readonly #options: KeyRingOptions;
  readonly #stop = new AbortController();
  readonly #timer: NodeJS.Timeout;
  #tenants: TenantKeys = new Map();
  #last: Promise<boolean> = Promise.resolve(true);
  #failures = 0;

  /** Has no keys before the first refresh(). */
  constructor(options: KeyRingOptions) {
    this.#options = options;
    this.#timer = setInterval(() => void this.refresh(), options.refreshMs).unref();
  }

  /** Readings that failed. */
  get failures(): number {
    return this.#failures;
  }

  sealKey({ tenant }: ChunkSpace): SealKey | undefined {
    return tenant === undefined ? undefined : this.#tenants.get(tenant)?.[0];
  }

  openKey({ tenant }: ChunkSpace, id: Uint8Array): SealKey | undefined {
    const keys = tenant === undefined ? undefined : this.#tenants.get(tenant);
    return keys?.find((key) => Buffer.compare(key.id, id) === 0);
  }

  /** Reads the keys after whatever reading runs. Never rejects; false: nothing changed. */
  refresh(): Promise<boolean> {
    this.#last = this.#last.then(() => this.#read());
    return this.#last;
  }

  async #read(): Promise<boolean> {
    const { source, log } = this.#options;
    if (this.#stop.signal.aborted) return false;
    try {
      const text =
        "file" in source
          ? await readKeyFile(source.file)
          : await runKeyCommand(source.command, source.timeoutMs, this.#stop.signal);
      // Earlier keys are not wiped: a transfer that began with one may still hold it.
      this.#tenants = parseKeys(text);
      return true;
    } catch (error) {
      if (this.#stop.signal.aborted) return false;
      this.#failures += 1;
      log(`remote: data keys were not read: ${error instanceof Error ? error.message : "?"}`);
      return false;
    }
  }

  /** Ends a running command; the keys stay until the ring is let go. */
  async close(): Promise<void> {
    clearInterval(this.#timer);
    this.#stop.abort();
    await this.#last;
  }
}
