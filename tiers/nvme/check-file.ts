/**
 * Asks a device whether it works: a sector of a small file of its own is written with new content, synced, and read
 * back past the page cache's copy where the file system allows it. Nothing of the tier's is touched.
 */
import { randomBytes } from "node:crypto";
import { constants } from "node:fs";
import { open, rm } from "node:fs/promises";
import { join } from "node:path";

export const CHECK_FILE = "check.cairn";
const SECTOR_BYTES = 4_096;

/** Resolves when the device did all three. @throws errno names, or an error for a sector that reads differently */
export async function checkDevice(directory: string): Promise<void> {
  const path = join(directory, CHECK_FILE);
  const sector = randomBytes(SECTOR_BYTES);
  const file = await open(path, "w+", 0o600);
  try {
    await file.write(sector, 0, SECTOR_BYTES, 0);
    await file.sync();
  } finally {
    await file.close();
  }
  const found = await readDirect(path);
  if (!found.equals(sector)) throw new Error("the device returned another sector than was written");
  await rm(path, { force: true });
}

/** O_DIRECT needs aligned memory: a WebAssembly memory begins at a page. Without O_DIRECT the page cache answers. */
async function readDirect(path: string): Promise<Buffer> {
  try {
    return await readSector(path, constants.O_RDONLY | constants.O_DIRECT);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "EINVAL") throw error;
    return readSector(path, constants.O_RDONLY);
  }
}

async function readSector(path: string, flags: number): Promise<Buffer> {
  const file = await open(path, flags);
  try {
    const memory = alignedSector();
    const { bytesRead } = await file.read(memory, 0, SECTOR_BYTES, 0);
    if (bytesRead !== SECTOR_BYTES) throw new Error(`short read of ${bytesRead} bytes`);
    return memory;
  } finally {
    await file.close();
  }
}

/** The types of Node name WebAssembly only as a namespace of types. */
interface WithWebAssembly {
  readonly WebAssembly: {
    readonly Memory: new (size: { initial: number }) => { readonly buffer: ArrayBuffer };
  };
}

function alignedSector(): Buffer {
  const { WebAssembly: wasm } = globalThis as unknown as WithWebAssembly;
  return Buffer.from(new wasm.Memory({ initial: 1 }).buffer, 0, SECTOR_BYTES);
}
