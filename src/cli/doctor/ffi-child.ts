/**
 * The child that calls host libraries through ffi-napi: one probe by name, one JSON report on standard
 * output. It may crash; its parent (libraries.ts) reports that.
 */
import { createRequire } from "node:module";
import type { ProbeReport } from "./libraries.ts";

/** The part of ffi-napi that the probes use. */
interface Ffi {
  Library(
    path: string | null,
    functions: Readonly<Record<string, readonly [string, readonly string[]]>>,
  ): Readonly<Record<string, (...args: readonly unknown[]) => number>>;
  errno(): number;
}

const IO_URING_SETUP = 425;
const URING_PARAMS_BYTES = 120;

type Probe = (ffi: Ffi) => Record<string, number | string>;

const PROBES: Readonly<Record<string, Probe>> = {
  uring: (ffi) => {
    const libc = ffi.Library("libc.so.6", {
      syscall: ["long", ["long", "uint", "pointer"]],
      close: ["int", ["int"]],
    });
    const result = Number(libc["syscall"]!(IO_URING_SETUP, 1, Buffer.alloc(URING_PARAMS_BYTES)));
    const errno = result < 0 ? ffi.errno() : 0;
    if (result >= 0) libc["close"]!(result);
    return { result, errno };
  },
  numa: (ffi) => {
    const numa = ffi.Library("libnuma.so.1", {
      numa_available: ["int", []],
      numa_max_node: ["int", []],
    });
    return { available: numa["numa_available"]!(), maxNode: numa["numa_max_node"]!() };
  },
  cuda: (ffi) => {
    const cuda = ffi.Library("libcuda.so.1", {
      cuInit: ["int", ["uint"]],
      cuDriverGetVersion: ["int", ["pointer"]],
      cuDeviceGetCount: ["int", ["pointer"]],
    });
    const version = Buffer.alloc(4);
    const devices = Buffer.alloc(4);
    cuda["cuDriverGetVersion"]!(version);
    const cuInit = cuda["cuInit"]!(0);
    if (cuInit === 0) cuda["cuDeviceGetCount"]!(devices);
    return { cuInit, driverVersion: version.readInt32LE(), devices: devices.readInt32LE() };
  },
  nvml: (ffi) => {
    const nvml = ffi.Library("libnvidia-ml.so.1", {
      nvmlInit_v2: ["int", []],
      nvmlDeviceGetCount_v2: ["int", ["pointer"]],
      nvmlSystemGetDriverVersion: ["int", ["pointer", "uint"]],
    });
    const init = nvml["nvmlInit_v2"]!();
    if (init !== 0) return { init };
    const devices = Buffer.alloc(4);
    const driver = Buffer.alloc(81);
    nvml["nvmlDeviceGetCount_v2"]!(devices);
    nvml["nvmlSystemGetDriverVersion"]!(driver, driver.length - 1);
    const text = driver.toString("latin1").split("\0")[0]!;
    return { init, devices: devices.readUInt32LE(), driver: text };
  },
  nixl: (ffi) => {
    ffi.Library("libnixl_capi.so", {});
    return { loaded: 1 };
  },
  /** For the test that a crash of a library is a finding. */
  crash: () => {
    process.kill(process.pid, "SIGSEGV");
    return {};
  },
};

function report(name: string): ProbeReport {
  const probe = Object.hasOwn(PROBES, name) ? PROBES[name] : undefined;
  if (probe === undefined) throw new Error(`no probe "${name}"`);
  let ffi: Ffi;
  try {
    // The test of a crash needs no library, so it runs where ffi-napi did not build, too.
    ffi =
      name === "crash"
        ? (undefined as unknown as Ffi)
        : (createRequire(import.meta.url)("ffi-napi") as Ffi);
  } catch (error) {
    return { outcome: "noFfi", values: {}, message: String(error).split("\n")[0]! };
  }
  try {
    return { outcome: "called", values: probe(ffi), message: "" };
  } catch (error) {
    return { outcome: "missing", values: {}, message: String(error).split("\n")[0]! };
  }
}

process.stdout.write(JSON.stringify(report(process.argv[2] ?? "")));
