/**
 * kill -9 at the n-th system call by which the daemon writes, syncs or maps its disk (strace injects the signal), then
 * a start without the DRAM pool: every block that was synced is there, and nothing else than right bytes.
 */
import { spawn, spawnSync } from "node:child_process";
import { describe, expect, it } from "vitest";
import { chainsOf, type DiskNode, withDiskNode } from "../harness/disk-node.ts";
import { eventually } from "../harness/eventually.ts";
import { LONG } from "../harness/scale.ts";

const BLOCKS = 8;
const base = chainsOf("crash", 10, BLOCKS);
const ALL = base.length * BLOCKS;
/** Rounds of 40 chains: together less than the disk holds, so that nothing has to leave it. */
const ROUNDS_MAX = 6;
/** In mode threads a write of a slot is a pwrite64; LMDB writes by pwrite64 and pwritev; both sync by fdatasync. */
const THREADS = "pwrite64,pwritev,fdatasync";
const URING = "io_uring_enter";
const POINTS: readonly (readonly [string, string, number])[] = LONG
  ? [1, 2, 3, 5, 8, 13, 21, 34].flatMap((n) => [
      ["threads", THREADS, n] as const,
      ["uring", URING, n * 2] as const,
      // Calls are counted thread by thread, and beside io_uring only the index makes some of these.
      ...(n <= 5 ? [["uring", THREADS, n] as const] : []),
    ])
  : [
      ["threads", THREADS, 2],
      ["threads", "fdatasync", 2],
      ["uring", URING, 5],
    ];

const traced = spawnSync("strace", ["-V"]).error === undefined;
const required = process.env["CI_FULL"] === "1";
if (!traced) console.warn("no kill at a system call: install the package `strace`");

/** Attaches strace, which kills the daemon at its n-th call of these; resolves when it is attached. */
async function killAt(node: DiskNode, calls: string, n: number): Promise<void> {
  const inject = `inject=${calls}:signal=SIGKILL:when=${n}`;
  const words = ["-f", "-qq", "-o", "/dev/null", "-e", `trace=${calls}`, "-e", inject];
  const child = spawn("strace", [...words, "-p", String(node.daemon.pid)], { stdio: "ignore" });
  const attached = (): boolean => {
    const done = spawnSync("grep", ["-h", "TracerPid", `/proc/${node.daemon.pid}/status`]);
    return !/TracerPid:\s+0\n/.test(done.stdout.toString());
  };
  await eventually("strace is attached", () => child.exitCode !== null || attached());
}

/** Chains stored until the daemon dies; how many calls a thread makes for them depends on how writes gather. */
async function storeUntilDeath(node: DiskNode, n: number): Promise<Uint8Array[][]> {
  const stored: Uint8Array[][] = [];
  for (let round = 0; node.daemon.running && round < ROUNDS_MAX; round++) {
    const more = chainsOf(`more-${n}-${round}`, 40, BLOCKS);
    stored.push(...more);
    // The daemon dies under these; what it answers is nobody's promise.
    for (let from = 0; node.daemon.running && from < more.length; from += 4)
      await node.store(more.slice(from, from + 4)).catch(() => undefined);
    await node.quiet().catch(() => undefined);
  }
  return stored;
}

async function killedAt(node: DiskNode, calls: string, n: number): Promise<void> {
  await killAt(node, calls, n);
  const more = await storeUntilDeath(node, n);
  await eventually("the daemon dies at that call", () => !node.daemon.running, 60_000);
  node.forgetPool();
  await node.daemon.launch();
  expect(await node.daemon.metric("recoveredBlocks")).toBeGreaterThanOrEqual(ALL);
  expect(await node.read(base)).toEqual({ hit: ALL, landed: ALL, wrong: 0, names: [] });
  const read = await node.read(more);
  expect(read).toMatchObject({ landed: read.hit, wrong: 0, names: [] });
}

function suite(): void {
  it.each(POINTS)(
    "mode %s, at call %s number %i",
    async (mode, calls, n) => {
      await withDiskNode({ nvme: { mode: mode === "uring" ? "auto" : mode } }, async (node) => {
        await node.daemon.launch();
        await node.storeDurably(base);
        await killedAt(node, calls, n);
        // The disk that survived takes blocks as before.
        await node.storeDurably(chainsOf("after", 4, BLOCKS));
      });
    },
    180_000,
  );
}

if (traced || required) describe("kill -9 at a system call", suite);
else it("needs strace, which is not here", () => expect(traced).toBe(false));
