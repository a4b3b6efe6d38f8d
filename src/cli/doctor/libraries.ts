/**
 * What host libraries tell: io_uring, libnuma, CUDA, NVML, NIXL. Each is called through ffi-napi in a child
 * of its own (ffi-child.ts), so that a driver that crashes or hangs is a finding and not the end of doctor.
 * ffi-napi is an optional package; where it did not build, the same questions are answered from /proc, /sys
 * and library paths, and each finding's source says which way it went.
 */
import { spawn } from "node:child_process";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { finding, type Finding } from "./finding.ts";

const CHILD_MS = 15_000;

/** What the child prints: `missing` = the library is not there; values by name otherwise. */
export interface ProbeReport {
  readonly outcome: "called" | "missing" | "noFfi";
  readonly values: Readonly<Record<string, number | string>>;
  readonly message: string;
}

export type ProbeResult =
  | ({ readonly kind: "report" } & ProbeReport)
  | { readonly kind: "crashed"; readonly how: string };

/** Runs one probe in a child; never throws. */
export function runProbe(name: string, timeoutMs = CHILD_MS): Promise<ProbeResult> {
  const script = new URL("./ffi-child.ts", import.meta.url).pathname;
  return new Promise((resolve) => {
    const child = spawn(process.execPath, ["--import", "tsx", script, name], {
      stdio: ["ignore", "pipe", "ignore"],
    });
    let text = "";
    child.stdout.setEncoding("utf8").on("data", (part: string) => {
      if (text.length < 65_536) text += part;
    });
    const timer = setTimeout(() => child.kill("SIGKILL"), timeoutMs);
    child.on("error", (error) => resolve({ kind: "crashed", how: String(error) }));
    child.on("close", (code, signal) => {
      clearTimeout(timer);
      if (code === 0) resolve({ kind: "report", ...(JSON.parse(text) as ProbeReport) });
      else resolve({ kind: "crashed", how: signal ?? `exit code ${code}` });
    });
  });
}

const LIBRARY_FOLDERS = [
  "/usr/lib/x86_64-linux-gnu",
  "/usr/lib/aarch64-linux-gnu",
  "/usr/lib64",
  "/usr/lib",
  "/usr/local/lib",
  "/usr/local/cuda/lib64",
  "/usr/local/nvidia/lib64",
  "/usr/lib/wsl/lib",
  "/opt/nvidia/nvda_nixl/lib64",
] as const;

/** Full path of a library, looking where loaders look. */
export function libraryPath(
  name: string,
  environment: NodeJS.ProcessEnv = process.env,
): string | undefined {
  const own = (environment["LD_LIBRARY_PATH"] ?? "").split(":").filter((one) => one !== "");
  for (const folder of [...own, ...LIBRARY_FOLDERS]) {
    const path = join(folder, name);
    if (existsSync(path)) return path;
  }
  return undefined;
}

interface LibraryCheck {
  readonly check: string;
  readonly probe: string;
  /** Words for the values a call returned. */
  readonly called: (values: ProbeReport["values"]) => Finding;
  /** The answer without calling anything. */
  readonly looked: () => Finding;
}

const GPU_FIX =
  "None needed: the DRAM tier runs without a GPU. For the HBM tier install the NVIDIA driver.";
const NIXL_FIX = "None needed on one node. For peers install NIXL (libnixl_capi.so).";
const URING_FIX =
  "sysctl kernel.io_uring_disabled=0 and a seccomp profile that allows it; without it the NVMe tier uses threads.";

function cudaVersion(version: number): string {
  return `${Math.floor(version / 1_000)}.${Math.floor((version % 1_000) / 10)}`;
}

function cudaCalled(values: ProbeReport["values"]): Finding {
  const source = "ffi-napi: cuInit, cuDriverGetVersion, cuDeviceGetCount";
  const started = Number(values["cuInit"]);
  const version = cudaVersion(Number(values["driverVersion"]));
  if (started !== 0)
    return finding(
      "CUDA",
      "absent",
      `libcuda ${version}, cuInit gives ${started}`,
      GPU_FIX,
      source,
    );
  return finding(
    "CUDA",
    "ok",
    `driver API ${version}, ${values["devices"]} device(s)`,
    null,
    source,
  );
}

function gpuNodes(): number {
  return existsSync("/dev")
    ? readdirSync("/dev").filter((name) => /^nvidia\d+$/.test(name)).length
    : 0;
}

function libraryLooked(check: string, library: string, fix: string): Finding {
  const path = libraryPath(library);
  const source = "library paths, /dev (ffi-napi is not built)";
  if (path === undefined) return finding(check, "absent", `no ${library}`, fix, source);
  const devices = library.startsWith("libcuda") ? `, ${gpuNodes()} device node(s)` : "";
  return finding(check, "ok", `${path}${devices} (not called)`, null, source);
}

function uringLooked(): Finding {
  const path = "/proc/sys/kernel/io_uring_disabled";
  const source = `${path}, /proc/self/status`;
  const disabled = existsSync(path) ? readFileSync(path, "utf8").trim() : "0";
  const filtered = /^Seccomp:\s+2$/m.test(readFileSync("/proc/self/status", "utf8"));
  if (disabled !== "0")
    return finding("io_uring", "absent", `io_uring_disabled is ${disabled}`, URING_FIX, source);
  const found = filtered ? "the kernel has it; a seccomp filter may deny it" : "the kernel has it";
  return finding("io_uring", filtered ? "warn" : "ok", found, filtered ? URING_FIX : null, source);
}

function uringCalled(values: ProbeReport["values"]): Finding {
  const source = "ffi-napi: io_uring_setup";
  const code = Number(values["result"]);
  if (code >= 0) return finding("io_uring", "ok", "a ring opens", null, source);
  return finding(
    "io_uring",
    "absent",
    `io_uring_setup fails (errno ${values["errno"]})`,
    URING_FIX,
    source,
  );
}

const CHECKS: readonly LibraryCheck[] = [
  { check: "io_uring", probe: "uring", called: uringCalled, looked: uringLooked },
  {
    check: "libnuma",
    probe: "numa",
    called: (values) => {
      const source = "ffi-napi: numa_available, numa_max_node";
      if (Number(values["available"]) < 0)
        return finding("libnuma", "absent", "the kernel gives it no policy to set", null, source);
      return finding("libnuma", "ok", `highest node ${values["maxNode"]}`, null, source);
    },
    looked: () =>
      libraryLooked("libnuma", "libnuma.so.1", "None needed: cairn binds by system call."),
  },
  {
    check: "CUDA",
    probe: "cuda",
    called: cudaCalled,
    looked: () => libraryLooked("CUDA", "libcuda.so.1", GPU_FIX),
  },
  {
    check: "NVML",
    probe: "nvml",
    called: (values) => {
      const source = "ffi-napi: nvmlInit_v2, nvmlDeviceGetCount_v2, nvmlSystemGetDriverVersion";
      const started = Number(values["init"]);
      if (started !== 0)
        return finding("NVML", "absent", `nvmlInit gives ${started}`, GPU_FIX, source);
      const found = `driver ${values["driver"]}, ${values["devices"]} device(s)`;
      return finding("NVML", "ok", found, null, source);
    },
    looked: () => libraryLooked("NVML", "libnvidia-ml.so.1", GPU_FIX),
  },
  {
    check: "NIXL",
    probe: "nixl",
    called: () => finding("NIXL", "ok", "libnixl_capi.so loads", null, "ffi-napi: dlopen"),
    looked: () => libraryLooked("NIXL", "libnixl_capi.so", NIXL_FIX),
  },
];

function judge(check: LibraryCheck, result: ProbeResult): Finding {
  if (result.kind === "crashed") {
    const fix = "The library crashes or hangs when it is called: reinstall it or its driver.";
    return finding(
      check.check,
      "warn",
      `the probe died: ${result.how}`,
      fix,
      "ffi-napi in a child process",
    );
  }
  if (result.outcome === "called") return check.called(result.values);
  // Without ffi, and without the library, paths say all that can be said.
  const looked = check.looked();
  return result.outcome === "noFfi" ? looked : { ...looked, source: `ffi-napi: ${result.message}` };
}

/** Every check that asks a library, one after another (drivers dislike company). */
export async function libraryChecks(): Promise<Finding[]> {
  const findings: Finding[] = [];
  for (const check of CHECKS) findings.push(judge(check, await runProbe(check.probe)));
  return findings;
}
