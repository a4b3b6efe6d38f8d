/**
 * An S3 server in memory for tests: strict where real ones are, and breakable on purpose.
 *
 * It checks SigV4 by its own arithmetic (header signature, payload hash rules, 15 minutes of clock), answers ranges,
 * conditional PUT, HEAD, DELETE and ListObjectsV2 in path style, and injects faults per request. As a program
 * (`fake-s3.ts PORT BUCKET`) it serves benches from a process of its own.
 */
import { createHash, createHmac, timingSafeEqual } from "node:crypto";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import { createServer as createTlsServer } from "node:https";
import type { AddressInfo } from "node:net";
import { pathToFileURL } from "node:url";

export const FAKE_KEYS = {
  accessKeyId: "FAKEACCESSKEY",
  secretAccessKey: "fake+secret/key",
} as const;
export const FAKE_REGION = "us-east-1";
const SKEW_MS_MAX = 15 * 60_000;
const PAGE_KEYS = 100;

/** What goes wrong with one request. */
export type FakeFault =
  | { readonly kind: "status"; readonly status: number; readonly code: string }
  /** Takes the request and never answers. */
  | { readonly kind: "hang" }
  /** Announces the whole body, sends `bytes` of it and is silent. */
  | { readonly kind: "stall"; readonly bytes: number }
  /** Announces the whole body, sends `bytes` of it and closes the connection. */
  | { readonly kind: "truncate"; readonly bytes: number }
  /** A shorter body that is announced as such. */
  | { readonly kind: "shorten"; readonly bytes: number }
  /** Closes the connection before it answers. */
  | { readonly kind: "reset" }
  /** Another object's body, or these bytes, of the length that was asked for. */
  | { readonly kind: "wrongBody"; readonly bytes: Uint8Array }
  /** Flips one bit of the body. */
  | { readonly kind: "flip"; readonly bit: number }
  /** Ignores the Range header. */
  | { readonly kind: "ignoreRange" }
  /** Stores the object, then closes the connection unanswered. */
  | { readonly kind: "storeAndReset" };

/** PEM texts. */
export interface FakeTls {
  readonly cert: string;
  readonly key: string;
}

export interface FakeRequest {
  readonly method: string;
  readonly key: string;
  readonly range: string | undefined;
  readonly unsigned: boolean;
}

interface Stored {
  bytes: Uint8Array;
  modifiedMs: number;
}

interface Refusal {
  readonly status: number;
  readonly code: string;
}

export class FakeS3 {
  readonly bucket: string;
  readonly objects = new Map<string, Stored>();
  readonly requests: FakeRequest[] = [];
  /** Decides per request; set it to inject. */
  fault: (request: FakeRequest) => FakeFault | undefined = () => undefined;
  /** Added to the server's clock. */
  clockOffsetMs = 0;
  /** Requests whose signature, hash or time was refused. */
  refused = 0;
  readonly #server: Server;
  readonly #hanging = new Set<ServerResponse>();

  readonly #scheme: "http" | "https";

  private constructor(bucket: string, tls: FakeTls | undefined) {
    this.bucket = bucket;
    this.#scheme = tls === undefined ? "http" : "https";
    const serve = (request: IncomingMessage, response: ServerResponse): void => {
      void this.#serve(request, response);
    };
    this.#server = tls === undefined ? createServer(serve) : createTlsServer({ ...tls }, serve);
  }

  static async start(bucket = "kv-test", port = 0, tls?: FakeTls): Promise<FakeS3> {
    const fake = new FakeS3(bucket, tls);
    await new Promise<void>((resolve) => {
      fake.#server.listen(port, "127.0.0.1", resolve);
    });
    return fake;
  }

  get port(): number {
    return (this.#server.address() as AddressInfo).port;
  }

  get endpoint(): string {
    return `${this.#scheme}://127.0.0.1:${this.port}`;
  }

  async stop(): Promise<void> {
    this.#server.closeAllConnections();
    await new Promise<void>((resolve) => {
      this.#server.close(() => resolve());
    });
  }

  async #serve(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const body = await bodyOf(request);
    if (body === undefined) return;
    const url = new URL(request.url ?? "/", "http://fake");
    const [, bucket, ...rest] = url.pathname.split("/");
    const key = decodeURIComponent(rest.join("/"));
    const hash = String(request.headers["x-amz-content-sha256"] ?? "");
    const seen: FakeRequest = {
      method: request.method ?? "",
      key,
      range: request.headers.range,
      unsigned: hash === "UNSIGNED-PAYLOAD",
    };
    this.requests.push(seen);
    const refusal = this.#verify(request, url, body);
    if (refusal !== undefined) {
      this.refused += 1;
      this.#error(request, response, refusal);
      return;
    }
    if (bucket !== this.bucket) {
      this.#error(request, response, { status: 404, code: "NoSuchBucket" });
      return;
    }
    const fault = this.fault(seen);
    if (fault !== undefined && this.#breaks(request, response, fault, key, body)) return;
    this.#answer(request, response, url, key, body, fault);
  }

  /** Faults that end the request here; the others change its answer. */
  #breaks(
    request: IncomingMessage,
    response: ServerResponse,
    fault: FakeFault,
    key: string,
    body: Uint8Array,
  ): boolean {
    if (fault.kind === "status") {
      this.#error(request, response, fault);
      return true;
    }
    if (fault.kind === "hang") {
      this.#hanging.add(response);
      return true;
    }
    if (fault.kind === "storeAndReset" && !this.objects.has(key)) this.#store(key, body);
    if (fault.kind === "storeAndReset" || fault.kind === "reset") {
      request.socket.destroy();
      return true;
    }
    return false;
  }

  #store(key: string, body: Uint8Array): void {
    this.objects.set(key, { bytes: body, modifiedMs: Date.now() + this.clockOffsetMs });
  }

  #answer(
    request: IncomingMessage,
    response: ServerResponse,
    url: URL,
    key: string,
    body: Uint8Array,
    fault: FakeFault | undefined,
  ): void {
    const { method } = request;
    if (key === "") {
      // The bucket is there from the start; to create it again is no error, as at AWS.
      if (method === "HEAD" || method === "PUT") this.#send(response, 200, {}, undefined);
      else if (method === "GET") this.#list(response, url);
      else this.#error(request, response, { status: 405, code: "MethodNotAllowed" });
      return;
    }
    const stored = this.objects.get(key);
    if (method === "PUT") {
      if (request.headers["if-none-match"] === "*" && stored !== undefined) {
        this.#error(request, response, { status: 412, code: "PreconditionFailed" });
        return;
      }
      this.#store(key, body);
      this.#send(response, 200, { etag: '"1"' }, undefined);
      return;
    }
    if (method === "DELETE") {
      this.objects.delete(key);
      this.#send(response, 204, {}, undefined);
      return;
    }
    if (stored === undefined) {
      this.#error(request, response, { status: 404, code: "NoSuchKey" });
      return;
    }
    if (method === "HEAD") {
      const headers = {
        "content-length": String(stored.bytes.length),
        "last-modified": new Date(stored.modifiedMs).toUTCString(),
      };
      this.#send(response, 200, headers, undefined);
      return;
    }
    this.#get(request, response, stored, fault);
  }

  #get(
    request: IncomingMessage,
    response: ServerResponse,
    stored: Stored,
    fault: FakeFault | undefined,
  ): void {
    const total = stored.bytes.length;
    const asked = /^bytes=(\d+)-(\d+)$/.exec(request.headers.range ?? "");
    const ranged = asked !== null && fault?.kind !== "ignoreRange";
    const from = ranged ? Number(asked[1]) : 0;
    const to = ranged ? Math.min(Number(asked[2]), total - 1) : total - 1;
    if (from >= total) {
      this.#error(request, response, { status: 416, code: "InvalidRange" });
      return;
    }
    let body = stored.bytes.subarray(from, to + 1);
    if (fault?.kind === "wrongBody") {
      body = Uint8Array.from(body, (_, at) => fault.bytes[at % fault.bytes.length] ?? 0);
    }
    if (fault?.kind === "flip") {
      body = body.slice();
      const at = (fault.bit >> 3) % body.length;
      body[at] = (body[at] ?? 0) ^ (1 << (fault.bit & 7));
    }
    if (fault?.kind === "shorten") body = body.subarray(0, fault.bytes);
    const headers: Record<string, string> = { "content-length": String(body.length) };
    if (ranged) headers["content-range"] = `bytes ${from}-${to}/${total}`;
    if (fault?.kind === "truncate" || fault?.kind === "stall") {
      response.writeHead(ranged ? 206 : 200, headers);
      response.write(body.subarray(0, fault.bytes), () => {
        if (fault.kind === "truncate") request.socket.destroy();
        else this.#hanging.add(response);
      });
      return;
    }
    this.#send(response, ranged ? 206 : 200, headers, body);
  }

  #list(response: ServerResponse, url: URL): void {
    const prefix = url.searchParams.get("prefix") ?? "";
    const after = url.searchParams.get("continuation-token") ?? "";
    const encoded = url.searchParams.get("encoding-type") === "url";
    const most = Math.min(PAGE_KEYS, Number(url.searchParams.get("max-keys") ?? PAGE_KEYS));
    const keys = [...this.objects.keys()]
      .filter((key) => key.startsWith(prefix) && key > after)
      .toSorted();
    const page = keys.slice(0, most);
    const rows = page.map((key) => {
      const { bytes, modifiedMs } = this.objects.get(key) as Stored;
      const shown = encoded ? encodeURIComponent(key) : key;
      const at = new Date(modifiedMs).toISOString();
      return `<Contents><Key>${shown}</Key><LastModified>${at}</LastModified><Size>${bytes.length}</Size></Contents>`;
    });
    const more = keys.length > page.length;
    const token = more ? `<NextContinuationToken>${page.at(-1) ?? ""}</NextContinuationToken>` : "";
    const text = `<?xml version="1.0" encoding="UTF-8"?><ListBucketResult><IsTruncated>${more}</IsTruncated>${token}${rows.join("")}</ListBucketResult>`;
    this.#send(response, 200, { "content-type": "application/xml" }, Buffer.from(text));
  }

  #error(request: IncomingMessage, response: ServerResponse, refusal: Refusal): void {
    const text = `<?xml version="1.0" encoding="UTF-8"?><Error><Code>${refusal.code}</Code><Message>injected or real</Message></Error>`;
    const body = request.method === "HEAD" ? undefined : Buffer.from(text);
    this.#send(response, refusal.status, { "content-type": "application/xml" }, body);
  }

  #send(
    response: ServerResponse,
    status: number,
    headers: Readonly<Record<string, string>>,
    body: Uint8Array | undefined,
  ): void {
    const date = new Date(Date.now() + this.clockOffsetMs).toUTCString();
    response.sendDate = false;
    const length = body === undefined ? {} : { "content-length": String(body.length) };
    response.writeHead(status, { date, ...length, ...headers });
    response.end(body);
  }

  #verify(request: IncomingMessage, url: URL, body: Uint8Array): Refusal | undefined {
    const { headers } = request;
    const found =
      /^AWS4-HMAC-SHA256 Credential=([^/]+)\/(\d{8})\/([^/]+)\/s3\/aws4_request, ?SignedHeaders=([^,]+), ?Signature=([0-9a-f]{64})$/.exec(
        headers.authorization ?? "",
      );
    if (found === null) return { status: 403, code: "AccessDenied" };
    const [, accessKey, day, region, signed, signature] = found as unknown as string[];
    if (accessKey !== FAKE_KEYS.accessKeyId) return { status: 403, code: "InvalidAccessKeyId" };
    if (region !== FAKE_REGION) return { status: 400, code: "AuthorizationHeaderMalformed" };
    const names = (signed as string).split(";");
    const hash = String(headers["x-amz-content-sha256"] ?? "");
    const must = ["host", "x-amz-content-sha256", "x-amz-date"];
    if (!must.every((name) => names.includes(name))) return { status: 403, code: "AccessDenied" };
    const date = String(headers["x-amz-date"] ?? "");
    const canonical = [
      request.method,
      url.pathname,
      canonicalQuery(url),
      ...names.map((name) => `${name}:${canonicalValue(headers[name])}`),
      "",
      signed,
      hash,
    ].join("\n");
    const scope = `${day}/${region}/s3/aws4_request`;
    const text = `AWS4-HMAC-SHA256\n${date}\n${scope}\n${sha256(canonical)}`;
    let key: Uint8Array = Buffer.from(`AWS4${FAKE_KEYS.secretAccessKey}`);
    for (const part of [day, region, "s3", "aws4_request"]) key = hmac(key, part as string);
    const wanted = hmac(key, text);
    if (!timingSafeEqual(wanted, Buffer.from(signature as string, "hex"))) {
      return { status: 403, code: "SignatureDoesNotMatch" };
    }
    const skew = Math.abs(timeOf(date) - (Date.now() + this.clockOffsetMs));
    if (!(skew <= SKEW_MS_MAX)) return { status: 403, code: "RequestTimeTooSkewed" };
    if (!date.startsWith(day as string)) return { status: 403, code: "SignatureDoesNotMatch" };
    if (hash === "UNSIGNED-PAYLOAD") return undefined;
    if (!/^[0-9a-f]{64}$/.test(hash)) return { status: 400, code: "InvalidRequest" };
    return hash === sha256(body) ? undefined : { status: 400, code: "XAmzContentSHA256Mismatch" };
  }
}

/** The whole body; undefined when the client went away. */
async function bodyOf(request: IncomingMessage): Promise<Uint8Array | undefined> {
  const parts: Buffer[] = [];
  try {
    for await (const part of request) parts.push(part as Buffer);
  } catch {
    return undefined;
  }
  return Buffer.concat(parts);
}

function canonicalQuery(url: URL): string {
  const encode = (text: string): string =>
    encodeURIComponent(text).replace(
      /[!'()*]/g,
      (one) => `%${one.charCodeAt(0).toString(16).toUpperCase()}`,
    );
  return [...url.searchParams]
    .map(([name, value]) => `${encode(name)}=${encode(value)}`)
    .toSorted()
    .join("&");
}

function canonicalValue(value: string | string[] | undefined): string {
  const text = Array.isArray(value) ? value.join(",") : (value ?? "");
  return text.trim().replace(/ +/g, " ");
}

/** Unix milliseconds of 20261122T163558Z. */
function timeOf(date: string): number {
  const found = /^(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)(\d\d)Z$/.exec(date);
  if (found === null) return Number.NaN;
  const [, year, month, day, hour, minute, second] = found.map(Number) as number[];
  return Date.UTC(
    year as number,
    (month as number) - 1,
    day as number,
    hour as number,
    minute as number,
    second as number,
  );
}

function sha256(data: string | Uint8Array): string {
  return createHash("sha256").update(data).digest("hex");
}

function hmac(key: Uint8Array, text: string): Buffer {
  return createHmac("sha256", key).update(text).digest();
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? "").href) {
  const [, , port, bucket] = process.argv;
  await FakeS3.start(bucket ?? "kv-test", Number(port ?? 0));
}
