/**
 * How many segments a directory should have. Capacity is physical: one budget for everything that lies in the
 * directory (segments and index), and never so much that the file system is left without its head-room, for
 * LMDB needs free pages to commit even a removal, and others write to that file system, too.
 *
 * planSegments() is pure and judges facts; directoryFacts() gathers them.
 */
import { readdirSync, statfsSync, statSync } from "node:fs";
import { join } from "node:path";
import { LIMITS } from "../../src/limits.ts";

/** Share of the budget that is set aside for the index until it is known to be larger. */
const INDEX_SHARE = 1 / 64;
const INDEX_BYTES_MIN = 4 * 1024 * 1024;
const BLOCK_BYTES = 512;

export interface DirectoryFacts {
  readonly totalBytes: number;
  /** Free to us on the file system. */
  readonly freeBytes: number;
  /** Allocated by segment files. */
  readonly segmentFileBytes: number;
  /** Allocated by everything else in the directory: index, damaged indexes, small files. */
  readonly otherBytes: number;
}

export interface SegmentPlan {
  /** Segments the directory should have. */
  readonly target: number;
  readonly budgetBytes: number;
  /** The file system is (nearly) full: nothing may be written that needs new blocks. */
  readonly full: boolean;
  /** Why the target is smaller than the configuration asks for; empty when it is not. */
  readonly note: string;
}

/**
 * @param segments files the directory has now
 * @param segmentsMax what slot numbers and the segment numbers of this directory still allow
 */
export function planSegments(
  capacityBytes: number | "auto",
  segmentBytes: number,
  segments: number,
  segmentsMax: number,
  facts: DirectoryFacts,
): SegmentPlan {
  const headroom = facts.totalBytes * LIMITS.nvmeHeadroomShare;
  const ours = facts.segmentFileBytes + facts.otherBytes;
  const full = facts.freeBytes < Math.max(facts.totalBytes * LIMITS.nvmeFullShare, INDEX_BYTES_MIN);
  const physical = Math.max(0, facts.freeBytes + ours - headroom);
  const wish = capacityBytes === "auto" ? Math.max(physical, ours) : capacityBytes;
  const budgetBytes = Math.min(wish, physical);
  const index = Math.max(facts.otherBytes, budgetBytes * INDEX_SHARE, INDEX_BYTES_MIN);
  const wanted = Math.max(0, Math.floor((budgetBytes - index) / segmentBytes));
  const target = keepIfRoomy(Math.min(wanted, segmentsMax), segments, full, wish, ours);
  const note =
    capacityBytes !== "auto" && wish > physical
      ? `the file system holds ${mib(physical)} of the ${mib(wish)} asked for`
      : "";
  return { target, budgetBytes, full, note };
}

/**
 * Segments that exist stay although others have eaten into the head-room, unless the file system is full or the
 * directory is over what it was given: written segments are not thrown away for a neighbour's passing file.
 */
function keepIfRoomy(
  target: number,
  segments: number,
  full: boolean,
  wish: number,
  ours: number,
): number {
  return target < segments && !full && ours <= wish ? segments : target;
}

function mib(bytes: number): string {
  return `${Math.floor(bytes / 2 ** 20)} MiB`;
}

/** @throws errno of statfs */
export function directoryFacts(directory: string): DirectoryFacts {
  const files = statfsSync(directory);
  let segmentFileBytes = 0;
  let otherBytes = 0;
  const walk = (path: string, top: boolean): void => {
    for (const entry of readdirSync(path, { withFileTypes: true })) {
      const child = join(path, entry.name);
      if (entry.isDirectory()) {
        walk(child, false);
        continue;
      }
      const bytes = (statSync(child, { throwIfNoEntry: false })?.blocks ?? 0) * BLOCK_BYTES;
      if (top && entry.name.startsWith("segment-")) segmentFileBytes += bytes;
      else otherBytes += bytes;
    }
  };
  walk(directory, true);
  return {
    totalBytes: files.blocks * files.bsize,
    freeBytes: files.bavail * files.bsize,
    segmentFileBytes,
    otherBytes,
  };
}
