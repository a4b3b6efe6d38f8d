/**
 * namespaces.json: which namespaces have blocks in a directory, in order of their first use here. The row of a
 * namespace stands in index entries, so rows are never renumbered. Those that no entry of the index names are vacated
 * at a start, when all entries were seen, and used again; else the file would only ever grow. The file is small and
 * changes seldom: each change replaces it whole (write aside, fsync, rename, fsync of the directory), so a power cut
 * leaves the old one or the new one.
 *
 * A daemon numbers namespaces for itself; `Rows` translates between its index and a directory's row.
 */
import { closeSync, fsyncSync, openSync, readFileSync, renameSync, statSync } from "node:fs";
import { open, rename } from "node:fs/promises";
import { join } from "node:path";
import { crc32 } from "node:zlib";
import type { NamespaceInfo } from "../../addon/binding.ts";
import { assert } from "../../src/assert.ts";
import { CairnError } from "../../src/errors.ts";
import { LIMITS } from "../../src/limits.ts";

export const NAMESPACES_FILE = "namespaces.json";
export const NAMESPACES_VERSION = 1;
const DIGEST_PATTERN = /^[0-9a-f]{32}$/;

export interface NamespaceRow {
  readonly digest: Uint8Array;
  readonly descriptor: Uint8Array;
}

/** A row that names nothing: its number is given to the next namespace that comes. */
const VACANT: NamespaceRow = { digest: new Uint8Array(16), descriptor: new Uint8Array(0) };

function isVacant({ descriptor }: NamespaceRow): boolean {
  return descriptor.length === 0;
}

/** The text of the file. The checksum covers the rows as they stand in it. */
export function encodeNamespaces(rows: readonly NamespaceRow[]): string {
  const body = JSON.stringify(
    rows.map(({ digest, descriptor }) => ({
      digest: Buffer.from(digest).toString("hex"),
      descriptor: Buffer.from(descriptor).toString("base64"),
    })),
  );
  return `{"version":${NAMESPACES_VERSION},"crc32":${crc32(body)},"rows":${body}}\n`;
}

/**
 * Rows of a file's text; undefined when it is damaged.
 * @throws CairnError formatUnsupported (another version)
 */
export function decodeNamespaces(text: string): NamespaceRow[] | undefined {
  let parsed: { version?: unknown; crc32?: unknown; rows?: unknown };
  try {
    parsed = JSON.parse(text) as typeof parsed;
  } catch {
    return undefined;
  }
  if (typeof parsed !== "object" || parsed === null) return undefined;
  if (typeof parsed.version === "number" && parsed.version !== NAMESPACES_VERSION) {
    throw new CairnError("formatUnsupported", `${NAMESPACES_FILE} has version ${parsed.version}`);
  }
  const { rows } = parsed;
  if (!Array.isArray(rows) || rows.length > LIMITS.nvmeNamespaceRowsMax) return undefined;
  if (crc32(JSON.stringify(rows)) !== parsed.crc32) return undefined;
  const decoded: NamespaceRow[] = [];
  for (const row of rows as { digest?: unknown; descriptor?: unknown }[]) {
    const { digest, descriptor } = row;
    if (typeof digest !== "string" || !DIGEST_PATTERN.test(digest)) return undefined;
    if (typeof descriptor !== "string") return undefined;
    decoded.push({
      digest: new Uint8Array(Buffer.from(digest, "hex")),
      descriptor: new Uint8Array(Buffer.from(descriptor, "base64")),
    });
  }
  return decoded;
}

/** Rows of a directory: empty when it has none yet, undefined when the file is damaged. */
export function readNamespaces(directory: string): NamespaceRow[] | undefined {
  try {
    return decodeNamespaces(readFileSync(join(directory, NAMESPACES_FILE), "utf8"));
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return [];
    if (error instanceof CairnError) throw error;
    return undefined;
  }
}

/** @throws errno names */
export async function writeNamespaces(
  directory: string,
  rows: readonly NamespaceRow[],
): Promise<void> {
  const path = join(directory, NAMESPACES_FILE);
  const file = await open(`${path}.new`, "w", 0o600);
  try {
    await file.writeFile(encodeNamespaces(rows));
    await file.sync();
  } finally {
    await file.close();
  }
  await rename(`${path}.new`, path);
  const folder = await open(directory, "r");
  try {
    await folder.sync();
  } finally {
    await folder.close();
  }
}

/** Moves a damaged file aside for a person to look at. Its index must have gone before. @throws errno names */
export function setNamespacesAside(directory: string, stamp: string): void {
  const path = join(directory, NAMESPACES_FILE);
  if (statSync(path, { throwIfNoEntry: false }) === undefined) return;
  renameSync(path, `${path}.damaged-${stamp}`);
  const folder = openSync(directory, "r");
  fsyncSync(folder);
  closeSync(folder);
}

function digestText(digest: Uint8Array): string {
  return Buffer.from(digest.buffer, digest.byteOffset, digest.byteLength).toString("hex");
}

const NO_ROW = -1;

/** Rows of one directory beside the daemon's indexes. */
export class Rows {
  readonly list: NamespaceRow[];
  readonly #rowOfDigest = new Map<string, number>();
  readonly #rowOfIndex: number[] = [];
  readonly #indexOfRow: number[] = [];
  readonly #vacant: number[] = [];
  /** Counts changes; what the file holds is that of #written. */
  revision = 0;
  #written = 0;

  constructor(rows: readonly NamespaceRow[]) {
    this.list = [...rows];
    for (const [number, row] of rows.entries()) {
      if (isVacant(row)) this.#vacant.push(number);
      else this.#rowOfDigest.set(digestText(row.digest), number);
    }
  }

  /** Whether there is such a row, and it names a namespace. */
  names(row: number): boolean {
    const found = this.list[row];
    return found !== undefined && !isVacant(found);
  }

  /** Rows that name a namespace. */
  get named(): readonly NamespaceRow[] {
    return this.list.filter((row) => !isVacant(row));
  }

  /** The daemon numbers this namespace so. */
  bind(index: number, digest: Uint8Array): void {
    const row = this.#rowOfDigest.get(digestText(digest)) ?? NO_ROW;
    // The index may have named another namespace, which is gone.
    const before = this.rowOf(index);
    if (before !== NO_ROW) this.#indexOfRow[before] = NO_ROW;
    this.#rowOfIndex[index] = row;
    if (row !== NO_ROW) this.#indexOfRow[row] = index;
  }

  /** The row of a namespace, −1 if it has no block here yet. */
  rowOf(index: number): number {
    return this.#rowOfIndex[index] ?? NO_ROW;
  }

  /** The daemon's index, −1 if the row is not bound. */
  indexOf(row: number): number {
    return this.#indexOfRow[row] ?? NO_ROW;
  }

  /** A row for a namespace that comes to this directory, if it has none; false: the table is full. */
  add(index: number, row: NamespaceRow): boolean {
    if (this.rowOf(index) !== NO_ROW) return true;
    assert(!isVacant(row), "a namespace has a descriptor");
    const number = this.#vacant.pop() ?? this.list.length;
    if (number >= LIMITS.nvmeNamespaceRowsMax) return false;
    this.list[number] = row;
    this.#rowOfDigest.set(digestText(row.digest), number);
    this.#rowOfIndex[index] = number;
    this.#indexOfRow[number] = index;
    this.revision += 1;
    return true;
  }

  /** Rows that are not in use name nothing from now on. Returns how many these were. */
  vacate(used: (row: number) => boolean): number {
    let count = 0;
    for (const [number, row] of this.list.entries()) {
      if (isVacant(row) || used(number)) continue;
      const index = this.indexOf(number);
      if (index !== NO_ROW) this.#rowOfIndex[index] = NO_ROW;
      this.#indexOfRow[number] = NO_ROW;
      this.#rowOfDigest.delete(digestText(row.digest));
      this.list[number] = VACANT;
      count += 1;
    }
    while (this.list.length > 0 && isVacant(this.list.at(-1)!)) this.list.pop();
    this.#vacant.length = 0;
    for (const [number, row] of this.list.entries()) if (isVacant(row)) this.#vacant.push(number);
    if (count > 0) this.revision += 1;
    return count;
  }

  /** The file holds what this revision was. */
  written(revision: number): void {
    assert(revision >= this.#written && revision <= this.revision, "revisions come in order");
    this.#written = revision;
  }

  get unwritten(): boolean {
    return this.#written < this.revision;
  }
}

/**
 * The table a start restores: the pool's own rows with their indexes, then rows that only directories know, numbered
 * on. The caller puts the added ones into the pool's table as well: header hashes are seeded from there.
 */
export function unionNamespaces(
  pool: readonly NamespaceInfo[],
  directories: readonly (readonly NamespaceRow[])[],
  namespacesMax: number,
): { readonly all: readonly NamespaceInfo[]; readonly added: readonly NamespaceInfo[] } {
  const known = new Set(pool.map(({ digest }) => digestText(digest)));
  const added: NamespaceInfo[] = [];
  let next = pool.reduce((most, { index }) => Math.max(most, index + 1), 0);
  for (const rows of directories) {
    for (const { digest, descriptor } of rows) {
      const text = digestText(digest);
      if (known.has(text) || next >= namespacesMax) continue;
      known.add(text);
      added.push({ index: next++, digest, descriptor });
    }
  }
  return { all: [...pool, ...added], added };
}
