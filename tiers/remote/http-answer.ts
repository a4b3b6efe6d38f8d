/**
 * HTTP/1.1, as far as a read of payload needs it (RFC 9112): a request without a body; of answers the head, the framing
 * and the text of a refusal. Pure.
 * Strict where a lenient reading could take one answer for another: CR LF ends every line, a length is one number and
 * stands alone, no line is continued.
 */
import type { IncomingHttpHeaders } from "node:http";
import { assert } from "../../src/assert.ts";

export interface HttpAnswer {
  readonly status: number;
  readonly headers: IncomingHttpHeaders;
  /** Body of an answer that did not go into the caller's memory; a refusal is cut where enough of it was read. */
  readonly text: string;
}

/** How the body's end is known. */
export type Framing =
  | { readonly kind: "length"; readonly bytes: number }
  | { readonly kind: "chunked" }
  /** By the connection's. */
  | { readonly kind: "close" };

export interface AnswerHead {
  readonly status: number;
  readonly headers: IncomingHttpHeaders;
  readonly framing: Framing;
  /** The connection may carry another request behind this answer. */
  readonly keepAlive: boolean;
  /** Up to the body. */
  readonly headBytes: number;
}

/** incomplete: more bytes may make it one. */
export type HeadVerdict = AnswerHead | "incomplete" | "malformed";

/** As Node's own client. */
export const HEAD_BYTES_MAX = 16_384;

const END = "\r\n\r\n";
const STATUS = /^HTTP\/1\.([01]) ([1-9]\d\d)(?: [\t\x20-\x7e\x80-\xff]*)?$/;
const NAME = /^[!#$%&'*+.^_`|~0-9A-Za-z-]+$/;
const VALUE = /^[\t\x20-\x7e\x80-\xff]*$/;
const LENGTH = /^\d{1,15}$/;
const BODILESS = new Set([204, 304]);
const SWITCHING = 101;

/** Reads the head at the beginning of `bytes`. An interim answer (1xx) is a head without a body. */
export function parseHead(bytes: Buffer): HeadVerdict {
  const end = bytes.subarray(0, HEAD_BYTES_MAX).indexOf(END);
  if (end === -1) return bytes.length < HEAD_BYTES_MAX ? "incomplete" : "malformed";
  const [first = "", ...lines] = bytes.toString("latin1", 0, end).split("\r\n");
  const line = STATUS.exec(first);
  const headers = line === null ? undefined : headersOf(lines);
  if (line === null || headers === undefined) return "malformed";
  const status = Number(line[2]);
  const framing = framingOf(status, headers);
  if (framing === undefined || status === SWITCHING) return "malformed";
  const options = String(headers["connection"] ?? "")
    .toLowerCase()
    .split(",");
  const closes = options.some((option) => trimmed(option) === "close");
  const keepAlive = line[1] === "1" && !closes && framing.kind !== "close";
  return { status, headers, framing, keepAlive, headBytes: end + END.length };
}

/** undefined: not headers, or one that must stand alone does not. */
function headersOf(lines: readonly string[]): IncomingHttpHeaders | undefined {
  const headers = Object.create(null) as Record<string, string>;
  for (const line of lines) {
    const colon = line.indexOf(":");
    const name = line.slice(0, Math.max(0, colon)).toLowerCase();
    const value = trimmed(line.slice(colon + 1));
    if (!NAME.test(name) || !VALUE.test(line.slice(colon))) return undefined;
    const before = headers[name];
    if (before !== undefined && name === "content-length") return undefined;
    headers[name] = before === undefined ? value : `${before}, ${value}`;
  }
  return headers as IncomingHttpHeaders;
}

/** Without spaces and tabs around it: other white space is part of a value, whatever String.trim() says. */
function trimmed(text: string): string {
  const blank = (at: number): boolean => text[at] === " " || text[at] === "\t";
  let [from, to] = [0, text.length];
  while (from < to && blank(from)) from += 1;
  while (to > from && blank(to - 1)) to -= 1;
  return text.slice(from, to);
}

function framingOf(status: number, headers: IncomingHttpHeaders): Framing | undefined {
  const length = headers["content-length"];
  const coding = headers["transfer-encoding"];
  if (length !== undefined && (coding !== undefined || !LENGTH.test(length))) return undefined;
  if (coding !== undefined && coding.toLowerCase() !== "chunked") return undefined;
  if (status < 200 || BODILESS.has(status)) return { kind: "length", bytes: 0 };
  if (coding !== undefined) return { kind: "chunked" };
  return length === undefined ? { kind: "close" } : { kind: "length", bytes: Number(length) };
}

export interface Body {
  readonly text: string;
  /** What it takes of the bytes, framing included. */
  readonly bytes: number;
}

/** How far a body in chunks is read: what comes in many pieces is not read again from its beginning. */
export interface Chunks {
  at: number;
  readonly parts: Buffer[];
}

export function noChunks(): Chunks {
  return { at: 0, parts: [] };
}

/**
 * The body at the beginning of `bytes`, of an answer that is not payload. ended: the connection brings no more.
 * chunks: of the calls before with the same bytes, or fewer of them.
 */
export function parseBody(
  framing: Framing,
  bytes: Buffer,
  ended: boolean,
  chunks: Chunks = noChunks(),
): Body | "incomplete" | "malformed" {
  if (framing.kind === "chunked") return parseChunked(bytes, chunks);
  const length = framing.kind === "length" ? framing.bytes : bytes.length;
  if (length > bytes.length || (framing.kind === "close" && !ended)) return "incomplete";
  return { text: bytes.toString("utf8", 0, length), bytes: length };
}

/** A length in hexadecimal, extensions that nobody has use for. */
const CHUNK = /^([0-9A-Fa-f]{1,8})(?:;[\t\x20-\x7e\x80-\xff]*)?$/;
const CHUNK_LINE_BYTES_MAX = 256;

function parseChunked(bytes: Buffer, chunks: Chunks): Body | "incomplete" | "malformed" {
  for (;;) {
    const { at } = chunks;
    const end = bytes.subarray(at, at + CHUNK_LINE_BYTES_MAX).indexOf("\r\n");
    if (end === -1) return bytes.length - at < CHUNK_LINE_BYTES_MAX ? "incomplete" : "malformed";
    const line = CHUNK.exec(bytes.toString("latin1", at, at + end));
    if (line === null) return "malformed";
    const length = Number.parseInt(line[1] as string, 16);
    // The line's end stays in front of the trailers, so that none and some end alike.
    if (length === 0) return ending(chunks.parts, bytes, at + end);
    const from = at + end + 2;
    const next = from + length + 2;
    assert(next > from, "a chunk has bytes");
    if (next > bytes.length) return "incomplete";
    if (bytes[next - 2] !== 0x0d || bytes[next - 1] !== 0x0a) return "malformed";
    chunks.parts.push(bytes.subarray(from, from + length));
    chunks.at = next;
  }
}

function ending(
  parts: readonly Buffer[],
  bytes: Buffer,
  at: number,
): Body | "incomplete" | "malformed" {
  const end = bytes.subarray(at, at + HEAD_BYTES_MAX).indexOf(END);
  if (end === -1) return bytes.length - at < HEAD_BYTES_MAX ? "incomplete" : "malformed";
  const trailers = headersOf(
    bytes
      .toString("latin1", at, at + end)
      .split("\r\n")
      .slice(1),
  );
  if (trailers === undefined || framesAgain(trailers)) return "malformed";
  return { text: Buffer.concat(parts).toString("utf8"), bytes: at + end + END.length };
}

function framesAgain(trailers: IncomingHttpHeaders): boolean {
  return trailers["content-length"] !== undefined || trailers["transfer-encoding"] !== undefined;
}

const TARGET = /^\/[\x21-\x7e]*$/;

/** What a request is refused with whose headers do not fit. */
export const UNFIT = "a header, made of the keys perhaps, holds what HTTP does not carry";

/** Whether HTTP can carry them: visible names, and values without what would end them. */
export function headersFit(headers: Readonly<Record<string, string>>): boolean {
  return Object.entries(headers).every(([name, value]) => NAME.test(name) && VALUE.test(value));
}

/** A request without a body; undefined when a header holds what HTTP does not carry. */
export function requestHead(
  method: string,
  path: string,
  headers: Readonly<Record<string, string>>,
): Buffer | undefined {
  assert(TARGET.test(path), "a path is encoded");
  if (!headersFit(headers)) return undefined;
  const lines = Object.entries({ ...headers, connection: "keep-alive" });
  const text = lines.map(([name, value]) => `${name}: ${value}\r\n`).join("");
  return Buffer.from(`${method} ${path} HTTP/1.1\r\n${text}\r\n`, "latin1");
}
