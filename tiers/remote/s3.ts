/**
 * An ObjectStore in an S3 bucket.
 *
 * The SDK controls (list, delete, bucket check), resolves credentials and endpoint, and signs. PUT and HEAD go over an
 * exchange of our own that shares its sockets (s3-transport.ts); GET, whose bodies land in the caller's memory, has others
 * (http-receiver.ts), so that no read waits behind a write. All share one clock offset.
 * Objects are written with `If-None-Match: *`; that somebody else was first is a success. Nothing is retried here
 * but a request whose only fault was our clock: retries are GuardedStore's.
 */
import { webcrypto } from "node:crypto";
import type { IncomingHttpHeaders } from "node:http";
import {
  DeleteObjectCommand,
  HeadBucketCommand,
  ListObjectsV2Command,
  S3Client,
  type S3ClientConfig,
} from "@aws-sdk/client-s3";
import { assert } from "../../src/assert.ts";
import { CairnError } from "../../src/errors.ts";
import { LIMITS } from "../../src/limits.ts";
import type { HttpAnswer } from "./http-answer.ts";
import { HttpReceiver } from "./http-receiver.ts";
import {
  assertObjectName,
  type CallLimits,
  type Failure,
  failure,
  isKeyPrefix,
  isObjectName,
  type ObjectEntry,
  type ObjectInfo,
  type ObjectPage,
  type ObjectStore,
  type Outcome,
  success,
} from "./object-store.ts";
import { clockOffsetOf, errorCodeOf, faultOfAnswer, totalOfContentRange } from "./s3-answers.ts";
import { readCredentials, type S3Credentials } from "./s3-credentials.ts";
import { HttpTransport } from "./s3-transport.ts";

export interface S3Options {
  readonly bucket: string;
  /** "" or parts of `A-Z a-z 0-9 . _ -` with slashes between, one at the end allowed. */
  readonly prefix: string;
  readonly region: string;
  /** `http(s)://host[:port]`; undefined: AWS. */
  readonly endpoint?: string | undefined;
  readonly pathStyle: boolean;
  /** Absent, with credentialsFile: the SDK's chain (environment, profile, role of the host). */
  readonly credentials?: S3Credentials | undefined;
  readonly credentialsFile?: string | undefined;
  /** Sign the body, too (SHA-256 of it); else UNSIGNED-PAYLOAD. */
  readonly signPayload: boolean;
  /** For payload that is read, and as many for all else. */
  readonly socketsMax: number;
  readonly idleMs: number;
  readonly certificateAuthorities?: string | undefined;
  /** Milliseconds of Unix time; Date.now by default. */
  readonly clock?: () => number;
}

const PRECONDITION_FAILED = 412;
/** A clock offset that moved by more was wrong before. */
const SKEW_MS = 60_000;
const LIST_KEYS_MAX = 1_000;
/** So long before they expire the SDK asks for credentials again. */
const SDK_REFRESH_MS = 300_000;
const UNSIGNED = "UNSIGNED-PAYLOAD";
/** SHA-256 of nothing. */
const EMPTY_HASH = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

type Signer = Awaited<ReturnType<S3Client["config"]["signer"]>>;

/** The SDK's errors, by shape: their classes are not all exported. */
interface SdkError {
  readonly name?: string;
  readonly message?: string;
  readonly code?: string;
  readonly $metadata?: { readonly httpStatusCode?: number };
}

type Headers = Readonly<Record<string, string>>;

/** A request before it is signed. */
interface Asked {
  readonly method: "GET" | "HEAD" | "PUT";
  readonly name: string;
  readonly headers: Headers;
}

interface Target {
  readonly protocol: string;
  readonly hostname: string;
  readonly port: number | undefined;
  readonly host: string;
  /** Path in front of "/" + key. */
  readonly base: string;
}

export class S3Store implements ObjectStore {
  readonly description: string;
  readonly #options: S3Options;
  readonly #client: S3Client;
  readonly #transport: HttpTransport;
  readonly #receiver: HttpReceiver;
  readonly #target: Target;
  readonly #clock: () => number;
  readonly #keyPrefix: string;
  #signer: Promise<Signer> | undefined;
  #clockCorrections = 0;

  /** Throws CairnError configInvalid. */
  constructor(options: S3Options) {
    const prefix = options.prefix.replace(/\/$/, "");
    if (!isKeyPrefix(options.prefix)) {
      throw new CairnError("configInvalid", `remote.s3.prefix "${options.prefix}": unsafe`);
    }
    this.#options = options;
    this.#clock = options.clock ?? Date.now;
    this.#keyPrefix = prefix === "" ? "" : `${prefix}/`;
    this.#transport = new HttpTransport(options);
    this.#client = new S3Client(this.#clientConfig());
    this.#target = this.#resolveTarget();
    const { hostname, port, protocol } = this.#target;
    const secure = protocol === "https:";
    this.#receiver = new HttpReceiver({
      ...options,
      secure,
      hostname,
      port: port ?? (secure ? 443 : 80),
      connectionsMax: options.socketsMax,
    });
    const where = options.endpoint ?? options.region;
    this.description = `s3 bucket ${options.bucket} at ${where}`;
  }

  /** How often a refused request taught us the server's time. */
  get clockCorrections(): number {
    return this.#clockCorrections;
  }

  async get(
    name: string,
    from: number,
    into: Uint8Array,
    limits: CallLimits,
  ): Promise<Outcome<number>> {
    assert(into.length > 0 && from >= 0, "a range has bytes");
    const end = from + into.length - 1;
    let total = 0;
    const accept = (status: number, headers: IncomingHttpHeaders): Failure | undefined => {
      if (status < 200 || status >= 300) return undefined;
      const found = totalOfContentRange(headers["content-range"], from, into.length);
      if (status !== 206 || found === undefined) {
        const said = headers["content-range"] ?? "nothing";
        const short = status === 206 && Number(headers["content-length"]) < into.length;
        return failure(short ? "short" : "protocol", `asked for a range, got ${status} ${said}`);
      }
      total = found;
      return undefined;
    };
    const asked = { method: "GET", name, headers: { range: `bytes=${from}-${end}` } } as const;
    const outcome = await this.#signed(asked, undefined, (path, headers) =>
      this.#receiver.receive({ path, headers, into, accept }, limits),
    );
    return outcome.ok ? success(total) : outcome;
  }

  async put(
    name: string,
    body: Uint8Array,
    limits: CallLimits,
  ): Promise<Outcome<"stored" | "present">> {
    const headers = {
      "content-length": String(body.length),
      "content-type": "application/octet-stream",
      "if-none-match": "*",
    };
    const outcome = await this.#exchange({ method: "PUT", name, headers }, body, limits);
    if (!outcome.ok) return outcome;
    return success(outcome.value.status === PRECONDITION_FAILED ? "present" : "stored");
  }

  /** Not by the SDK: existence probes are frequent, and its middleware costs ten times the exchange. */
  async head(name: string, limits: CallLimits): Promise<Outcome<ObjectInfo>> {
    const outcome = await this.#exchange({ method: "HEAD", name, headers: {} }, undefined, limits);
    if (!outcome.ok) return outcome;
    const { headers } = outcome.value;
    const bytes = Number(headers["content-length"]);
    const modifiedMs = Date.parse(headers["last-modified"] ?? "");
    if (!Number.isSafeInteger(bytes) || Number.isNaN(modifiedMs)) {
      return failure("protocol", "a HEAD without length or date");
    }
    return success({ bytes, modifiedMs });
  }

  list(
    prefix: string,
    cursor: string | undefined,
    limits: CallLimits,
  ): Promise<Outcome<ObjectPage>> {
    const input = {
      Bucket: this.#options.bucket,
      Prefix: this.#keyPrefix + prefix,
      MaxKeys: LIST_KEYS_MAX,
      EncodingType: "url" as const,
      ...(cursor === undefined ? {} : { ContinuationToken: cursor }),
    };
    return this.#control(limits, async (abortSignal) => {
      const page = await this.#client.send(new ListObjectsV2Command(input), { abortSignal });
      const entries: ObjectEntry[] = [];
      for (const found of page.Contents ?? []) {
        const name = this.#nameOf(found.Key ?? "");
        const modifiedMs = found.LastModified?.getTime();
        if (name === undefined || modifiedMs === undefined) continue;
        entries.push({ name, bytes: found.Size ?? 0, modifiedMs });
      }
      const next = page.IsTruncated === true ? page.NextContinuationToken : undefined;
      return { entries, cursor: next };
    });
  }

  async delete(name: string, limits: CallLimits): Promise<Outcome<"deleted" | "missing">> {
    assertObjectName(name);
    const input = { Bucket: this.#options.bucket, Key: this.#keyPrefix + name };
    const outcome = await this.#control(limits, async (abortSignal) => {
      await this.#client.send(new DeleteObjectCommand(input), { abortSignal });
      return "deleted" as const;
    });
    return !outcome.ok && outcome.fault === "missing" ? success("missing") : outcome;
  }

  async check(limits: CallLimits): Promise<Outcome<"reachable">> {
    const outcome = await this.#control(limits, async (abortSignal) => {
      const input = { Bucket: this.#options.bucket };
      await this.#client.send(new HeadBucketCommand(input), { abortSignal });
      return "reachable" as const;
    });
    if (outcome.ok || outcome.fault !== "missing") return outcome;
    return failure("refused", `no bucket ${this.#options.bucket}`);
  }

  /** Objects come into being whole: an upload that was broken off leaves nothing. */
  sweep(): Promise<Outcome<number>> {
    return Promise.resolve(success(0));
  }

  close(): Promise<void> {
    this.#client.destroy();
    this.#transport.close();
    this.#receiver.close();
    return Promise.resolve();
  }

  #clientConfig(): S3ClientConfig {
    const { credentials, credentialsFile, endpoint, idleMs, pathStyle, region } = this.#options;
    const custom = endpoint !== undefined;
    const config: S3ClientConfig = {
      region,
      forcePathStyle: pathStyle,
      maxAttempts: 1,
      requestHandler: {
        httpAgent: this.#transport.httpAgent,
        httpsAgent: this.#transport.httpsAgent,
        requestTimeout: idleMs,
        connectionTimeout: idleMs,
      },
    };
    if (custom) {
      // Stores other than AWS refuse the checksum headers that the SDK adds by itself.
      config.endpoint = endpoint;
      config.requestChecksumCalculation = "WHEN_REQUIRED";
      config.responseChecksumValidation = "WHEN_REQUIRED";
    }
    if (credentials !== undefined) config.credentials = { ...credentials };
    else if (credentialsFile !== undefined) {
      // The SDK asks again when they are about to expire; else what it was told first holds for ever.
      config.credentials = async () => ({
        ...(await readCredentials(credentialsFile)),
        expiration: new Date(Date.now() + SDK_REFRESH_MS + LIMITS.credentialsReadMs),
      });
    }
    return config;
  }

  #resolveTarget(): Target {
    const { bucket, endpoint, pathStyle, region } = this.#options;
    const parameters = {
      Bucket: bucket,
      Region: region,
      ForcePathStyle: pathStyle,
      UseFIPS: false,
      UseDualStack: false,
      ...(endpoint === undefined ? {} : { Endpoint: endpoint }),
    };
    let url: URL;
    try {
      url = this.#client.config.endpointProvider(parameters, {}).url;
    } catch (error) {
      const message = error instanceof Error ? error.message : String(error);
      throw new CairnError("configInvalid", `remote.s3: ${message}`);
    }
    return {
      protocol: url.protocol,
      hostname: url.hostname.replace(/^\[|\]$/g, ""),
      port: url.port === "" ? undefined : Number(url.port),
      host: url.host,
      base: url.pathname.replace(/\/$/, ""),
    };
  }

  #nameOf(encodedKey: string): string | undefined {
    let key: string;
    try {
      key = decodeURIComponent(encodedKey);
    } catch {
      return undefined;
    }
    const name = key.slice(this.#keyPrefix.length);
    return key.startsWith(this.#keyPrefix) && isObjectName(name) ? name : undefined;
  }

  #exchange(
    asked: Asked,
    body: Uint8Array | undefined,
    limits: CallLimits,
  ): Promise<Outcome<HttpAnswer>> {
    const { protocol, hostname, port } = this.#target;
    return this.#signed(asked, body, (path, headers) => {
      const call = { protocol, hostname, port, path, method: asked.method, headers, body };
      return this.#transport.exchange(call, limits);
    });
  }

  /** Signs and sends; repeated once when only our clock was wrong. */
  async #signed(
    { method, name, headers }: Asked,
    body: Uint8Array | undefined,
    send: (path: string, signed: Headers) => Promise<Outcome<HttpAnswer>>,
  ): Promise<Outcome<HttpAnswer>> {
    assertObjectName(name);
    const path = `${this.#target.base}/${this.#keyPrefix}${name}`;
    const hash = await this.#payloadHash(body);
    for (let attempt = 0; ; attempt += 1) {
      const signedAtMs = this.#clock() + this.#client.config.systemClockOffset;
      const signed = await this.#sign(method, path, { ...headers, ...hash }, signedAtMs);
      if (!signed.ok) return signed;
      const outcome = await send(path, signed.value);
      if (!outcome.ok) return outcome;
      const { status, text } = outcome.value;
      const wanted = method === "PUT" && status === PRECONDITION_FAILED;
      if (wanted || (status >= 200 && status < 300)) return outcome;
      const date = outcome.value.headers.date;
      const offset = clockOffsetOf(status, date, signedAtMs, this.#clock());
      if (offset !== undefined && attempt === 0) {
        this.#client.config.systemClockOffset = offset;
        this.#clockCorrections += 1;
        continue;
      }
      const code = errorCodeOf(text);
      return failure(faultOfAnswer(status, code), `${status} ${code}`);
    }
  }

  async #payloadHash(body: Uint8Array | undefined): Promise<Record<string, string>> {
    const header = "x-amz-content-sha256";
    if (!this.#options.signPayload) return { [header]: UNSIGNED };
    if (body === undefined) return { [header]: EMPTY_HASH };
    // Off the JS thread: 8 MiB would hold it up for 4 ms.
    const digest = await webcrypto.subtle.digest("SHA-256", body);
    return { [header]: Buffer.from(digest).toString("hex") };
  }

  async #sign(
    method: string,
    path: string,
    headers: Record<string, string>,
    dateMs: number,
  ): Promise<Outcome<Headers>> {
    const { host, hostname, port, protocol } = this.#target;
    try {
      this.#signer ??= this.#client.config.signer({
        name: "sigv4",
        signingName: "s3",
        signingRegion: this.#options.region,
        properties: {},
      });
      const signer = await this.#signer;
      const request = {
        method,
        protocol,
        hostname,
        path,
        query: {},
        headers: { host, ...headers },
        ...(port === undefined ? {} : { port }),
      };
      const signed = await signer.sign(request, {
        signingDate: new Date(dateMs),
        signingRegion: this.#options.region,
        signingService: "s3",
      });
      return success(signed.headers);
    } catch (error) {
      this.#signer = undefined;
      const message = error instanceof Error ? error.message : String(error);
      return failure("refused", `no credentials: ${message}`);
    }
  }

  /** A call of the SDK under deadline and signal; repeated once when it has just learnt the server's time. */
  async #control<T>(
    limits: CallLimits,
    call: (signal: AbortSignal) => Promise<T>,
  ): Promise<Outcome<T>> {
    const abort = new AbortController();
    let late = false;
    const timer = setTimeout(() => {
      late = true;
      abort.abort();
    }, limits.deadlineMs);
    const onAbort = (): void => abort.abort();
    limits.signal?.addEventListener("abort", onAbort, { once: true });
    if (limits.signal?.aborted === true) abort.abort();
    try {
      for (let attempt = 0; ; attempt += 1) {
        const offset = this.#client.config.systemClockOffset;
        try {
          return success(await call(abort.signal));
        } catch (error) {
          if (late) return failure("timeout", "past the deadline");
          if (abort.signal.aborted) return failure("cancelled", "cancelled");
          const moved = Math.abs(this.#client.config.systemClockOffset - offset) > SKEW_MS;
          if (attempt > 0 || !moved) return failureOfSdk(error as SdkError);
          this.#clockCorrections += 1;
        }
      }
    } finally {
      clearTimeout(timer);
      limits.signal?.removeEventListener("abort", onAbort);
    }
  }
}

function failureOfSdk(error: SdkError): Failure {
  const status = error.$metadata?.httpStatusCode;
  const name = error.name ?? "";
  const message = `${status ?? error.code ?? name} ${error.message ?? ""}`.trim();
  if (status !== undefined) {
    // A HEAD has no body: the SDK then makes up a name.
    const code = name === "UnknownError" || name === "Unknown" || name === "Error" ? "" : name;
    return failure(faultOfAnswer(status, code), message);
  }
  if (name === "TimeoutError") return failure("timeout", message);
  const unsendable = error.code === "ERR_INVALID_CHAR";
  if (unsendable || name === "CredentialsProviderError" || name === "CairnError") {
    return failure("refused", message);
  }
  return failure("unavailable", message);
}
