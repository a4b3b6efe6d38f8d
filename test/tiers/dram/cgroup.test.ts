import { describe, expect, it } from "vitest";
import { cgroupFree } from "../../../tiers/dram/cgroup.ts";

const MIB = 1024 * 1024;
const V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate";
const V1 = "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory";
const V1_CPU = "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct";

/** Free bytes, in MiB, of a process in `group` on a host with these mounts and files (values in MiB). */
function free(
  group: string,
  mounts: readonly string[],
  values: Readonly<Record<string, number | "max">>,
): number {
  const files = new Map<string, string>([
    ["/proc/self/cgroup", `${group}\n`],
    ["/proc/self/mountinfo", `${mounts.join("\n")}\n`],
  ]);
  for (const [path, value] of Object.entries(values)) {
    files.set(`/sys/fs/cgroup/${path}`, `${value === "max" ? "max" : value * MIB}\n`);
  }
  return cgroupFree((path) => files.get(path)) / MIB;
}

describe("what is left under the memory limits of the process's own cgroup", () => {
  it("v2: is what its own limit leaves", () => {
    const values = {
      "a/b/memory.max": 512,
      "a/b/memory.current": 100,
      "a/memory.max": "max",
    } as const;
    expect(free("0::/a/b", [V2], values)).toBe(412);
  });

  it("v2: is what the tightest limit on the way up leaves", () => {
    expect(
      free("0::/a/b/c", [V2], {
        "a/b/c/memory.max": "max",
        "a/b/c/memory.current": 10,
        "a/b/memory.max": 500,
        "a/b/memory.current": 50,
        "a/memory.max": 1_000,
        "a/memory.current": 900,
        "memory.max": "max",
      }),
    ).toBe(100);
  });

  it("v2: a sibling's limit does not count, nor does a limit that is not set", () => {
    const values = { "a/memory.max": "max", "a/memory.current": 5, "b/memory.max": 1 } as const;
    expect(free("0::/a", [V2], values)).toBe(Number.POSITIVE_INFINITY);
  });

  it("v2: a container that sees only its own part finds its limit at the root of that part", () => {
    expect(free("0::/", [V2], { "memory.max": 300, "memory.current": 100 })).toBe(200);
    const part = V2.replace(" / /sys", " /docker/x /sys");
    const values = { "memory.max": 300, "memory.current": 0, "app/memory.max": 50 };
    expect(free("0::/docker/x", [part], values)).toBe(300);
    expect(free("0::/docker/x/app", [part], values)).toBe(50);
    expect(free("0::/docker/xy", [part], values)).toBe(300);
    expect(free("0::/../other", [V2], values)).toBe(300);
  });

  it("v1: is what the tightest limit of the memory controller leaves, whatever others say", () => {
    const values = {
      "memory/jobs/one/memory.limit_in_bytes": 400,
      "memory/jobs/one/memory.usage_in_bytes": 300,
      "memory/jobs/memory.limit_in_bytes": 2 ** 43,
      "memory/memory.limit_in_bytes": 2 ** 43,
      "cpu,cpuacct/jobs/memory.limit_in_bytes": 1,
    };
    const group = "4:memory:/jobs/one\n1:cpu,cpuacct:/jobs\n0::/";
    expect(free(group, [V1_CPU, V1], values)).toBe(100);
    expect(free("4:memory:/", [V1], { "memory/memory.limit_in_bytes": 2 ** 43 })).toBe(
      Number.POSITIVE_INFINITY,
    );
  });

  it("on a host with both is the tighter of the two", () => {
    const values = {
      "memory/x/memory.limit_in_bytes": 400,
      "memory/x/memory.usage_in_bytes": 0,
      "unified/x/memory.max": 50,
    };
    const unified = V2.replace("/sys/fs/cgroup ", "/sys/fs/cgroup/unified ");
    expect(free("4:memory:/x\n0::/x", [V1, unified], values)).toBe(50);
  });

  it("is never below zero, and unbounded where the kernel tells nothing", () => {
    expect(free("0::/a", [V2], { "a/memory.max": 10, "a/memory.current": 11 })).toBe(0);
    expect(cgroupFree(() => undefined)).toBe(Number.POSITIVE_INFINITY);
    expect(free("garbage\n\n5:memory", ["short line"], {})).toBe(Number.POSITIVE_INFINITY);
  });
});
