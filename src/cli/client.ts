/** The command line's HTTP client: the daemon's edge over TCP, TLS or a Unix socket. */
import { readFileSync } from "node:fs";
import { request as httpRequest, type IncomingMessage, type RequestOptions } from "node:http";
import { request as httpsRequest } from "node:https";
import { type ListenAddress, parseListen } from "../config/listen.ts";
import { CairnError, errorNameOfCode } from "../errors.ts";
import { configOf, type OptionKinds, type ParsedArguments } from "./arguments.ts";
import { UsageError } from "./exit.ts";

const TIMEOUT_MS = 10_000;
const ANSWER_BYTES_MAX = 64 * 1_024 * 1_024;

export const EDGE_OPTIONS: OptionKinds = {
  edge: "string",
  "token-file": "string",
  ca: "string",
  cert: "string",
  key: "string",
};

export interface EdgeClient {
  /** As the operator would write it. */
  readonly address: string;
  /** throws unavailable when nobody answers, or the error that the daemon answered. */
  get<T>(path: string): Promise<T>;
}

function destination(address: ListenAddress): RequestOptions {
  if (address.kind === "unix") return { socketPath: address.path };
  const { host, port } = address;
  if (host === "0.0.0.0") return { host: "127.0.0.1", port };
  return host === "::" ? { host: "::1", port } : { host, port };
}

function readText(path: string | undefined): string | undefined {
  if (path === undefined) return undefined;
  try {
    return readFileSync(path, "utf8");
  } catch (error) {
    throw new UsageError(String(error));
  }
}

async function readAnswer(message: IncomingMessage): Promise<unknown> {
  const parts: Buffer[] = [];
  let bytes = 0;
  for await (const part of message as AsyncIterable<Buffer>) {
    bytes += part.length;
    if (bytes > ANSWER_BYTES_MAX)
      throw new CairnError("internal", "the answer is longer than 64 MiB");
    parts.push(part);
  }
  return JSON.parse(Buffer.concat(parts).toString("utf8"));
}

function refused(body: unknown): CairnError {
  const { code, message } = body as { readonly code?: unknown; readonly message?: unknown };
  const name = errorNameOfCode(typeof code === "number" ? code : 0);
  return new CairnError(name, typeof message === "string" ? message : "an error without a message");
}

function send(options: RequestOptions, secure: boolean, address: string): Promise<IncomingMessage> {
  return new Promise((resolve, reject) => {
    const request = (secure ? httpsRequest : httpRequest)(options, resolve);
    request.setTimeout(TIMEOUT_MS, () =>
      request.destroy(new Error(`no answer in ${TIMEOUT_MS} ms`)),
    );
    request.on("error", (error) => {
      reject(new CairnError("unavailable", `no daemon answers at ${address}: ${error.message}`));
    });
    request.end();
  });
}

/** Connects nothing yet; each get() is one request. */
export function edgeClient(parsed: ParsedArguments): EdgeClient {
  const { edge } = configOf(parsed).config;
  const text = parsed.values.get("edge") ?? edge.listen;
  const address = parseListen(text);
  if (address === undefined) throw new UsageError(`--edge: "${text}" is no address`);
  const token = readText(parsed.values.get("token-file") ?? edge.tokenFile)
    ?.split("\n")[0]
    ?.trim();
  const caFile = parsed.values.get("ca") ?? edge.tls?.certFile;
  const secure = caFile !== undefined;
  const pem = {
    ca: readText(caFile),
    cert: readText(parsed.values.get("cert")),
    key: readText(parsed.values.get("key")),
  };
  const options: RequestOptions = {
    ...destination(address),
    ...(secure ? pem : {}),
    agent: false,
    headers: {
      ...(address.kind === "unix" ? { host: "localhost" } : {}),
      ...(token === undefined ? {} : { authorization: `Bearer ${token}` }),
    },
  };
  return {
    address: text,
    async get<T>(path: string): Promise<T> {
      const message = await send({ ...options, path }, secure, text);
      const body = await readAnswer(message);
      if (message.statusCode !== 200) throw refused(body);
      return body as T;
    },
  };
}
