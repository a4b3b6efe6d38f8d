/**
 * Which NUMA nodes this host has. The pool is one file whose pages are spread over all nodes that have
 * memory (docs/design-decisions.md says why it is not one file a node); with one node there is nothing to do.
 */
import { readFileSync } from "node:fs";

/** The kernel's own bound (CONFIG_NODES_SHIFT 10). */
const NODES_MAX = 1_024;
/** Nodes with memory; older kernels have only the list of nodes that are online. */
const LISTS = ["/sys/devices/system/node/has_memory", "/sys/devices/system/node/online"];

/** A list in the kernel's format (`0`, `0-3`, `0-1,4,6-7`); empty when the text is not one. */
export function parseNodeList(text: string): number[] {
  const nodes = new Set<number>();
  for (const part of text.trim().split(",")) {
    const range = /^(\d{1,4})(?:-(\d{1,4}))?$/.exec(part);
    if (range === null) return [];
    const first = Number(range[1]);
    const last = Number(range[2] ?? range[1]);
    if (last < first || last >= NODES_MAX) return [];
    for (let node = first; node <= last; node++) nodes.add(node);
  }
  return [...nodes].toSorted((a, b) => a - b);
}

/** Nodes with memory, ascending; `[0]` where the kernel says nothing. */
export function memoryNodes(paths: readonly string[] = LISTS): number[] {
  for (const path of paths) {
    try {
      const nodes = parseNodeList(readFileSync(path, "utf8"));
      if (nodes.length > 0) return nodes;
    } catch {
      // A kernel without NUMA, or a sandbox that hides it.
    }
  }
  return [0];
}

/** Nodes to spread the pool over; empty when there is nothing to spread. */
export function interleaveNodes(numa: "auto" | "off", nodes: readonly number[]): readonly number[] {
  return numa === "auto" && nodes.length > 1 ? nodes : [];
}
