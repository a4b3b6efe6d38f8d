/** What the kernel tells: Node, memory, tmpfs, huge pages, limits, NUMA. Files of /proc and /sys only. */
import { existsSync, readFileSync, statfsSync } from "node:fs";
import { spawnSync } from "node:child_process";
import { dirname } from "node:path";
import { cgroupFree } from "../../../tiers/dram/cgroup.ts";
import { interleaveNodes, memoryNodes } from "../../../tiers/dram/numa.ts";
import { bundled } from "../../bundle/place.ts";
import type { Config } from "../../config/schema.ts";
import { formatBytes } from "../../config/units.ts";
import { finding, type Finding } from "./finding.ts";

const GIB = 1024 ** 3;
const TMPFS_MAGIC = 0x0102_1994;
const HUGETLBFS_MAGIC = 0x9584_58f6;
const CHILD_MS = 20_000;

function readOr(path: string, fallback = ""): string {
  try {
    return readFileSync(path, "utf8").trim();
  } catch {
    return fallback;
  }
}

/** A `Name:  123 kB` line in bytes, or a plain count; undefined if there is none. */
export function meminfoValue(text: string, name: string): number | undefined {
  const match = new RegExp(`^${name}:\\s+(\\d+)( kB)?$`, "m").exec(text);
  if (match === null) return undefined;
  return Number(match[1]) * (match[2] === undefined ? 1 : 1_024);
}

/** The soft limit of a line of /proc/self/limits; Infinity for `unlimited`. */
export function limitValue(text: string, name: string): number | undefined {
  const line = text.split("\n").find((one) => one.startsWith(name));
  const soft = line?.slice(name.length).trim().split(/\s+/)[0];
  if (soft === undefined) return undefined;
  return soft === "unlimited" ? Number.POSITIVE_INFINITY : Number(soft);
}

function nodeCheck(): Finding {
  const [major = 0, minor = 0] = process.versions.node.split(".").map(Number);
  const fits = major === 20 && minor >= 19;
  const fix = fits ? null : "Install Node 20.19 or later of the 20 line.";
  return finding("node", fits ? "ok" : "fail", process.version, fix, "process.version");
}

function addonCheck(): Finding {
  const path = new URL("../../../addon/load.ts", import.meta.url);
  const script = `import(${JSON.stringify(path.href)}).then((m) => m.loadAddon())`;
  const args = ["--import", "tsx", "--input-type=module", "-e", script];
  const child = spawnSync(process.execPath, args, { timeout: CHILD_MS, encoding: "utf8" });
  const source = "loaded in a child process";
  if (child.status === 0) return finding("addon", "ok", "built and loads", null, source);
  const reason =
    child.signal ?? child.stderr.split("\n").find((line) => line.includes("cannot load"));
  const found = `does not load: ${reason ?? `exit code ${child.status}`}`;
  return finding("addon", "fail", found, "Run `npm run build:addon`.", source);
}

function bundleCheck(): Finding {
  const source = "the address of the program's own modules";
  if (bundled) return finding("bundle", "ok", "made of these sources", null, source);
  const found = "none of these sources: they run themselves, and a start takes longer";
  return finding("bundle", "warn", found, "Run `npm run build:bundle`.", source);
}

/** Bytes this process may still take: free memory, or what is left of its cgroup. */
function freeMemory(): { readonly bytes: number; readonly source: string } {
  const available = meminfoValue(readOr("/proc/meminfo"), "MemAvailable") ?? 0;
  const left = cgroupFree();
  if (left < available) return { bytes: left, source: "the memory limits of our cgroup" };
  return { bytes: available, source: "/proc/meminfo MemAvailable" };
}

function memoryCheck({ dram }: Config): Finding {
  const { bytes, source } = freeMemory();
  const wanted = dram.capacityBytes;
  const found = `${formatBytes(bytes)} free`;
  if (wanted !== "auto" && wanted > bytes) {
    const fix = `Lower dram.capacityBytes (${formatBytes(wanted)}) or free memory; a surviving pool counts as used.`;
    return finding("memory", "warn", found, fix, source);
  }
  const tight = bytes < GIB;
  const fix = tight ? "Less than 1 GiB leaves little room for a pool." : null;
  return finding("memory", tight ? "warn" : "ok", found, fix, source);
}

function existingParent(path: string): string {
  let at = path;
  while (!existsSync(at) && at !== "/") at = dirname(at);
  return at;
}

function tmpfsCheck({ dram }: Config): Finding {
  const at = existingParent(dram.directory);
  const { type, bavail, bsize, blocks } = statfsSync(at);
  const free = bavail * bsize;
  const source = `statfs ${at}`;
  const kind = type === TMPFS_MAGIC ? "tmpfs" : type === HUGETLBFS_MAGIC ? "hugetlbfs" : undefined;
  const size = `${formatBytes(free)} free of ${formatBytes(blocks * bsize)}`;
  if (kind === undefined) {
    const fix = "Set dram.directory to a tmpfs or hugetlbfs, such as /dev/shm/cairn.";
    return finding("tmpfs", "warn", `${dram.directory} is not memory-backed; ${size}`, fix, source);
  }
  const wanted = dram.capacityBytes === "auto" ? 0 : dram.capacityBytes;
  const small = free < Math.max(wanted, 64 * 1024 ** 2);
  const fix = small
    ? `Grow it (mount -o remount,size=… ${at}; Docker: --shm-size; Kubernetes: emptyDir medium Memory).`
    : null;
  return finding(
    "tmpfs",
    small ? "warn" : "ok",
    `${dram.directory} on ${kind}, ${size}`,
    fix,
    source,
  );
}

/** The word in brackets of a sysfs choice such as `always [madvise] never`. */
export function chosen(text: string): string {
  return /\[(\w+)\]/.exec(text)?.[1] ?? "unknown";
}

function hugePagesCheck(): Finding {
  const meminfo = readOr("/proc/meminfo");
  const total = meminfoValue(meminfo, "HugePages_Total") ?? 0;
  const free = meminfoValue(meminfo, "HugePages_Free") ?? 0;
  const bytes = meminfoValue(meminfo, "Hugepagesize") ?? 0;
  const shmem = chosen(readOr("/sys/kernel/mm/transparent_hugepage/shmem_enabled"));
  const source = "/proc/meminfo, /sys/kernel/mm/transparent_hugepage/shmem_enabled";
  const found = `${free} of ${total} reserved pages of ${formatBytes(bytes)} free; tmpfs huge pages: ${shmem}`;
  const usable = total > 0 || ["always", "advise", "within_size", "force"].includes(shmem);
  const fix =
    "echo advise > /sys/kernel/mm/transparent_hugepage/shmem_enabled, or reserve vm.nr_hugepages.";
  return finding("huge pages", usable ? "ok" : "absent", found, usable ? null : fix, source);
}

function memlockCheck(): Finding {
  const limit = limitValue(readOr("/proc/self/limits"), "Max locked memory") ?? 0;
  const source = "/proc/self/limits";
  if (limit === Number.POSITIVE_INFINITY)
    return finding("memlock", "ok", "unlimited", null, source);
  const fix =
    "LimitMEMLOCK=infinity (systemd), --ulimit memlock=-1 (Docker); needed to pin for a GPU only.";
  return finding("memlock", "warn", formatBytes(limit), fix, source);
}

function filesCheck({ engineApi }: Config): Finding {
  const limit = limitValue(readOr("/proc/self/limits"), "Max open files") ?? 0;
  // A connection may hold its socket and a window's descriptor.
  const needed = engineApi.connectionsMax * 2 + 128;
  const fits = limit >= needed;
  const fix = fits ? null : `Raise LimitNOFILE to ${needed} or lower engineApi.connectionsMax.`;
  const found = `${limit} (${needed} needed at connectionsMax)`;
  return finding("open files", fits ? "ok" : "warn", found, fix, "/proc/self/limits");
}

export function numaCheck({ dram }: Pick<Config, "dram">, nodes = memoryNodes()): Finding {
  const source = "/sys/devices/system/node/has_memory";
  if (nodes.length === 1) return finding("NUMA", "ok", "one node", null, source);
  const spread = interleaveNodes(dram.numa, nodes).length > 0;
  const found = spread
    ? `nodes ${nodes.join(", ")}: the pool's pages are spread over all of them`
    : `nodes ${nodes.join(", ")}: the pool's pages lie where they are first touched`;
  const fix = spread ? null : "Set dram.numa to auto to spread the pool over all nodes.";
  return finding("NUMA", spread ? "ok" : "warn", found, fix, source);
}

function processorCheck(): Finding {
  const text = readOr("/proc/cpuinfo");
  const flags = /^(?:flags|Features)\s*:(.*)$/m.exec(text)?.[1]?.split(" ") ?? [];
  const model = /^model name\s*:\s*(.*)$/m.exec(text)?.[1] ?? process.arch;
  const wide = ["avx512f", "avx2", "asimd"].filter((flag) => flags.includes(flag));
  const found = `${model}; ${wide.length === 0 ? "no wide vectors seen" : wide.join(", ")}`;
  return finding("processor", wide.length === 0 ? "warn" : "ok", found, null, "/proc/cpuinfo");
}

/** Every check that needs no library. */
export function hostChecks(config: Config): Finding[] {
  return [
    nodeCheck(),
    addonCheck(),
    bundleCheck(),
    processorCheck(),
    memoryCheck(config),
    tmpfsCheck(config),
    hugePagesCheck(),
    memlockCheck(),
    filesCheck(config),
    numaCheck(config),
  ];
}
