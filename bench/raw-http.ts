/**
 * The reference that remote-get and remote-put are held against: what node:http does with S3 and nothing else.
 * Keep-alive sockets, UNSIGNED-PAYLOAD, a signature of the fewest headers a server accepts, a body that is sent from
 * and received into a preallocated buffer. No deadline, no retry, no check of what came.
 */
import { createHash, createHmac } from "node:crypto";
import { Agent, request } from "node:http";
import { assert } from "../src/assert.ts";

export interface RawTarget {
  /** `http://host:port` */
  readonly endpoint: string;
  readonly region: string;
  readonly accessKeyId: string;
  readonly secretAccessKey: string;
}

export const UNSIGNED = "UNSIGNED-PAYLOAD";

function hmac(key: Uint8Array | string, text: string): Buffer {
  return createHmac("sha256", key).update(text).digest();
}

/** Headers of a request signed by SigV4; the path is encoded and has no query. */
export function signed(
  target: RawTarget,
  method: string,
  path: string,
  extra: Readonly<Record<string, string>>,
  payloadHash: string,
  nowMs: number,
): Record<string, string> {
  const stamp = `${new Date(nowMs).toISOString().slice(0, 19).replace(/[-:]/g, "")}Z`;
  const day = stamp.slice(0, 8);
  const headers: Record<string, string> = {
    ...extra,
    host: new URL(target.endpoint).host,
    "x-amz-content-sha256": payloadHash,
    "x-amz-date": stamp,
  };
  const names = Object.keys(headers).toSorted();
  const lines = names.map((name) => `${name}:${headers[name] ?? ""}\n`).join("");
  const list = names.join(";");
  const canonical = `${method}\n${path}\n\n${lines}\n${list}\n${payloadHash}`;
  const scope = `${day}/${target.region}/s3/aws4_request`;
  const digest = createHash("sha256").update(canonical).digest("hex");
  let key = hmac(`AWS4${target.secretAccessKey}`, day);
  for (const part of [target.region, "s3", "aws4_request"]) key = hmac(key, part);
  const signature = hmac(key, `AWS4-HMAC-SHA256\n${stamp}\n${scope}\n${digest}`).toString("hex");
  const credential = `${target.accessKeyId}/${scope}`;
  headers["authorization"] =
    `AWS4-HMAC-SHA256 Credential=${credential}, SignedHeaders=${list}, Signature=${signature}`;
  return headers;
}

/** One keep-alive client. Rejects on any answer but 2xx. */
export class RawHttp {
  readonly #target: RawTarget;
  readonly #url: URL;
  readonly #agent: Agent;

  constructor(target: RawTarget, sockets: number) {
    this.#target = target;
    this.#url = new URL(target.endpoint);
    this.#agent = new Agent({ keepAlive: true, maxSockets: sockets, maxFreeSockets: sockets });
  }

  /** GET into the buffer; resolves with the bytes received. */
  get(path: string, into: Uint8Array): Promise<number> {
    return this.#exchange("GET", path, undefined, into);
  }

  async put(path: string, body: Uint8Array): Promise<void> {
    await this.#exchange("PUT", path, body, undefined);
  }

  async delete(path: string): Promise<void> {
    await this.#exchange("DELETE", path, undefined, undefined);
  }

  close(): void {
    this.#agent.destroy();
  }

  #exchange(
    method: string,
    path: string,
    body: Uint8Array | undefined,
    into: Uint8Array | undefined,
  ): Promise<number> {
    const length = body === undefined ? {} : { "content-length": String(body.length) };
    const headers = signed(this.#target, method, path, length, UNSIGNED, Date.now());
    return new Promise((resolve, reject) => {
      const { hostname, port } = this.#url;
      const options = { hostname, port, path, method, headers, agent: this.#agent };
      const sent = request(options, (response) => {
        let at = 0;
        response.on("data", (chunk: Buffer) => {
          if (into !== undefined) into.set(chunk, at);
          at += chunk.length;
        });
        response.on("error", reject);
        response.on("end", () => {
          const status = response.statusCode ?? 0;
          if (status >= 200 && status < 300) resolve(at);
          else reject(new Error(`${method} ${path}: ${status}`));
        });
      });
      sent.on("error", reject);
      assert(method !== "PUT" || body !== undefined, "a PUT has a body");
      sent.end(body);
    });
  }
}
