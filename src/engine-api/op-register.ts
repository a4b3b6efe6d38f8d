/**
 * REGISTER: maps an engine's window. What can be refused is refused at once; then the window's pages are
 * touched on a native thread, so that a window of many GiB stalls nobody's look-ups, and the reply goes out
 * when that has ended. Until then no other call may name the region.
 */
import { randomInt } from "node:crypto";
import { fstatSync } from "node:fs";
import { assert } from "../assert.ts";
import { CairnError, type ErrorName } from "../errors.ts";
import { LIMITS } from "../limits.ts";
import { METRIC } from "../observe/feed.ts";
import { booleanField, type ColdMap, decodeCold, integerField, textField } from "./codec.ts";
import { removeRegion } from "./completion.ts";
import { type EngineContext, type InboundFrame, NO_DESCRIPTOR } from "./context.ts";
import { OP, type RegisterRequest } from "./protocol.ts";
import { checkGeometry, Region } from "./regions.ts";

/** Unit of st_blocks, whatever the file system's own block is. */
const STAT_BLOCK_BYTES = 512;
/** Task number of a region's PROGRESS event: this plus the region's id. Smaller ones are the DRAM tier's. */
export const REGION_TASK_FIRST = 65_536;

export function register(context: EngineContext, frame: InboundFrame): void {
  const { connection } = frame;
  const instance = frame.instance;
  const request = registerRequest(decodeCold(frame.coldBody()));
  const view = instance.view(request.namespace);
  checkGeometry(request, view.namespace);
  if (connection.regions.size >= LIMITS.regionsPerConnectionMax) {
    throw new CairnError("overloaded", "regionsPerConnectionMax regions are registered");
  }
  if (instance.windowBytes + request.sizeBytes > context.settings.windowBytesMax) {
    throw new CairnError("windowBudget", `${request.sizeBytes} bytes more`, instance.windowBytes);
  }
  const { windows } = context;
  const { id, descriptor, file, missingBytes } = mapWindow(context, frame, request);
  const region = new Region(id, view, request, randomInt(1, 2 ** 31), windows, file);
  connection.regions.set(region.id, region);
  instance.windowBytes += region.sizeBytes;
  context.feed.add(METRIC.regions, 1);
  context.feed.add(METRIC.regionBytes, region.sizeBytes);
  const { tag } = frame.header;
  windows.touching.set(id, { connection, region, tag, descriptor, missingBytes });
  windows.missingBytes += missingBytes;
  context.addon.regionTouch(id, REGION_TASK_FIRST + id);
}

/**
 * The window's pages are there, or could not be had (`errno`): answers its REGISTER. The error that was
 * answered; undefined when all is well or nobody waits any more.
 */
export function windowTouched(
  context: EngineContext,
  id: number,
  errno: number,
): CairnError | undefined {
  const { windows, out, addon } = context;
  const waiting = windows.touching.get(id);
  assert(waiting !== undefined, "a window that was touched was waited for");
  windows.touching.delete(id);
  windows.missingBytes -= waiting.missingBytes;
  const { connection, region, tag, descriptor } = waiting;
  let error: CairnError | undefined;
  if (connection.regions.get(id) !== region) {
    assert(connection.closed, "only the end of its connection takes a waiting window away");
  } else if (errno !== 0) {
    removeRegion(context, connection, region);
    error = new CairnError("windowMap", `the window's pages cannot be had: errno ${errno}`, errno);
    out.error(connection.id, OP.REGISTER, tag, 0, error.errorName, error.message, error.detail);
  } else {
    region.ready = true;
    const { sizeBytes, asked, seed } = region;
    const reply = { region: id, sizeBytes, proof: asked, seed, block: 0 };
    out.cold(connection.id, OP.REGISTER, tag, id, reply, descriptor);
  }
  if (descriptor !== -1) addon.closeDescriptor(descriptor);
  return error;
}

function registerRequest(body: ColdMap): RegisterRequest {
  const kind = textField(body, "kind", 16);
  if (kind === "deviceMemory") {
    throw new CairnError("memoryUnsupported", "this daemon maps no device memory");
  }
  if (kind !== "window") throw new CairnError("malformedFrame", `kind ${kind}: only window`);
  const make = textField(body, "make", 16);
  if (make !== "client" && make !== "daemon") {
    throw new CairnError("malformedFrame", "make: client or daemon");
  }
  const bytesMax = 2 ** 50;
  return {
    kind,
    make,
    namespace: integerField(body, "namespace", 1, 65_535),
    sizeBytes: integerField(body, "sizeBytes", 1, bytesMax),
    offsetBytes: integerField(body, "offsetBytes", 0, bytesMax),
    strideBytes: integerField(body, "strideBytes", 1, bytesMax),
    blocks: integerField(body, "blocks", 1, LIMITS.regionBlocksMax),
    proof: booleanField(body, "proof"),
  };
}

interface MappedWindow {
  readonly id: number;
  /** A descriptor to hand out and then close; −1 when the client made the window. */
  readonly descriptor: number;
  /** Names the memfd: two regions with one name share memory. */
  readonly file: string;
  /** Bytes that nobody has touched yet. */
  readonly missingBytes: number;
}

/** @throws CairnError malformedFrame, overloaded, windowNotSealed, windowTooSmall, windowMap */
function mapWindow(
  context: EngineContext,
  frame: InboundFrame,
  request: RegisterRequest,
): MappedWindow {
  const { addon, windows } = context;
  const { sizeBytes } = request;
  const carried = frame.descriptor;
  if ((request.make === "client") !== (carried !== NO_DESCRIPTOR)) {
    throw new CairnError("malformedFrame", "a client-made window carries one descriptor");
  }
  const found = carried === NO_DESCRIPTOR ? undefined : fileOf(carried);
  const missingBytes = found === undefined ? sizeBytes : Math.max(0, sizeBytes - found.heldBytes);
  // One that is too short is about to be refused for that.
  if (found === undefined || found.sizeBytes >= sizeBytes) {
    checkHostMemory(windows.missingBytes + missingBytes);
  }
  if (found !== undefined && windows.aliases(found.file) >= LIMITS.regionsPerMemfdMax) {
    throw new CairnError("overloaded", "regionsPerMemfdMax regions of this memfd are registered");
  }
  try {
    if (found === undefined) {
      const { region, descriptor } = addon.regionCreate(sizeBytes);
      return { id: region, descriptor, file: fileOf(descriptor).file, missingBytes };
    }
    frame.descriptor = NO_DESCRIPTOR; // The addon takes it over, also when it refuses.
    const { region } = addon.regionMap(carried, sizeBytes);
    return { id: region, descriptor: -1, file: found.file, missingBytes };
  } catch (error) {
    const code = (error as { code?: unknown }).code;
    const message = error instanceof Error ? error.message : String(error);
    throw new CairnError(windowError(code), message);
  }
}

function fileOf(descriptor: number) {
  const { dev, ino, size, blocks } = fstatSync(descriptor, { bigint: true });
  const heldBytes = Number(blocks) * STAT_BLOCK_BYTES;
  return { file: `${dev}:${ino}`, sizeBytes: Number(size), heldBytes };
}

/**
 * Windows are touched whole. Pages that nobody has touched yet come out of what the host has free, and a
 * daemon that took the last of it would be killed for its client. @throws CairnError windowMap
 */
function checkHostMemory(missingBytes: number): void {
  const freeBytes = process.availableMemory();
  if (missingBytes <= freeBytes * LIMITS.windowShareOfFreeMemory) return;
  throw new CairnError(
    "windowMap",
    `${missingBytes} bytes to touch, ${freeBytes} free on this host`,
  );
}

function windowError(code: unknown): ErrorName {
  if (code === "NOT_SEALED") return "windowNotSealed";
  if (code === "TOO_SMALL") return "windowTooSmall";
  return "windowMap";
}
