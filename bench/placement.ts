/**
 * Where client and server of a round trip run. On a machine with idle cores the scheduler's choice decides: one and the
 * same native echo takes 5 µs with both ends on one core and 75 µs across two sleeping ones. A comparison of two
 * round trips is therefore made with equal placement, once together and once apart.
 */
import { spawnSync } from "node:child_process";
import { availableParallelism } from "node:os";

export interface Placement {
  readonly name: string;
  /** undefined = any processor. */
  readonly client: number | undefined;
  readonly server: number | undefined;
}

export const FREE: Placement = { name: "free", client: undefined, server: undefined };

/** "free" is the scheduler's choice; the other two need util-linux and a second processor. */
export function placements(): readonly Placement[] {
  if (spawnSync("taskset", ["--version"]).status !== 0) return [FREE];
  const together: Placement = { name: "together", client: 0, server: 0 };
  if (availableParallelism() < 2) return [FREE, together];
  return [FREE, together, { name: "apart", client: 0, server: 1 }];
}

/** Moves all threads of a process; undefined lets it run anywhere again. */
export function placeProcess(pid: number, cpu: number | undefined): void {
  if (cpu === undefined && placements().length === 1) return;
  const list = cpu === undefined ? `0-${availableParallelism() - 1}` : String(cpu);
  spawnSync("taskset", ["-a", "-p", "-c", list, String(pid)]);
}
