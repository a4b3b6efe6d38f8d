/**
 * Namespace descriptors: what an engine declares about its blocks. Two descriptors that differ in any
 * field, or that come from two tenants, have different digests and so never share a block. Layout and
 * lengths are declared, never inferred: with two KV heads a split and a packed layout have equal shapes.
 */
import { createHash } from "node:crypto";
import { CairnError } from "../errors.ts";
import { LIMITS } from "../limits.ts";
import { type ColdMap, type ColdValue, mapValue } from "./codec.ts";
import type { NamespaceDescriptor } from "./protocol.ts";

export const DIGEST_BYTES = 16;
const CHUNK_BLOCKS_DEFAULT = 16;

function refuse(name: string, what: string): never {
  throw new CairnError("badDescriptor", `${name}: ${what}`);
}

function text(map: ColdMap, name: string): string {
  const value = map[name];
  if (typeof value !== "string" || value.length === 0 || value.length > 1_024) {
    return refuse(name, "a string of 1 to 1024 characters");
  }
  return value;
}

function flag(map: ColdMap, name: string): boolean {
  const value = map[name];
  return typeof value === "boolean" ? value : refuse(name, "a boolean");
}

function whole(map: ColdMap, name: string, minimum: number, maximum: number): number {
  const value = map[name];
  const fits = typeof value === "number" && Number.isInteger(value);
  if (!fits || value < minimum || value > maximum) {
    return refuse(name, `an integer from ${minimum} to ${maximum}`);
  }
  return value;
}

function texts(map: ColdMap, name: string): string[] {
  const value = map[name];
  if (!Array.isArray(value) || value.length === 0 || value.length > 64) {
    return refuse(name, "a list of 1 to 64 strings");
  }
  return value.map((entry) =>
    typeof entry === "string" && entry.length <= 256 ? entry : refuse(name, "only strings"),
  );
}

/**
 * Checks a descriptor from the wire and returns it with exactly the known fields.
 * @throws CairnError badDescriptor
 */
export function parseDescriptor(value: ColdValue | undefined): NamespaceDescriptor {
  const map = mapValue(value, "namespaces[]");
  const keyBytes = whole(map, "keyBytes", LIMITS.keyBytesMin, LIMITS.keyBytesMax);
  if (keyBytes % 4 !== 0) refuse("keyBytes", "a multiple of 4");
  const chunk = map["chunkBlocks"];
  return {
    model: text(map, "model"),
    revision: text(map, "revision"),
    kvDtype: text(map, "kvDtype"),
    quantScales: flag(map, "quantScales"),
    layout: text(map, "layout"),
    rowBytes: whole(map, "rowBytes", 1, 2 ** 31 - 1),
    groupKinds: texts(map, "groupKinds"),
    draft: flag(map, "draft"),
    blockTokens: whole(map, "blockTokens", 1, 65_536),
    hashAlgorithm: text(map, "hashAlgorithm"),
    hashSeed: text(map, "hashSeed"),
    engineBuild: text(map, "engineBuild"),
    keyBytes,
    shards: whole(map, "shards", 1, LIMITS.shardsMax),
    chained: flag(map, "chained"),
    chunkBlocks:
      chunk === undefined || chunk === null
        ? CHUNK_BLOCKS_DEFAULT
        : whole(map, "chunkBlocks", 1, 65_536),
  };
}

/** The descriptor as JSON with sorted keys: the text that is hashed and persisted. */
export function canonicalJson(descriptor: NamespaceDescriptor): string {
  const entries = Object.entries(descriptor).toSorted(([a], [b]) => (a < b ? -1 : 1));
  return JSON.stringify(Object.fromEntries(entries));
}

/**
 * First 16 bytes of SHA-256 over canonical JSON, a line feed, the tenant's name and, for a variant
 * (a namespace that hides older blocks from an instance whose proof failed), a line feed and its nonce.
 */
export function namespaceDigest(
  descriptor: NamespaceDescriptor,
  tenant: string,
  variant: string,
): Uint8Array {
  const hash = createHash("sha256").update(canonicalJson(descriptor)).update(`\n${tenant}`);
  if (variant !== "") hash.update(`\n${variant}`);
  return new Uint8Array(hash.digest().subarray(0, DIGEST_BYTES));
}
