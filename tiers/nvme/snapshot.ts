/** What status pages are told of one device. */
import type { DeviceHealth } from "../tier.ts";
import type { NvmeCounters } from "./counters.ts";
import type { Device } from "./device.ts";
import type { EnduranceSnapshot } from "./endurance.ts";

export interface DeviceSnapshot {
  readonly device: number;
  readonly directory: string;
  readonly health: DeviceHealth;
  readonly full: boolean;
  readonly draining: boolean;
  readonly rebuilding: boolean;
  readonly mode: "uring" | "threads";
  readonly direct: boolean;
  /** Bytes of segments in use. */
  readonly capacityBytes: number;
  /** Bytes that everything in the directory may take. */
  readonly budgetBytes: number;
  readonly segments: number;
  readonly segmentsTarget: number;
  /** MiB of the segment that is being written now; undefined when none is. */
  readonly preparing: { readonly done: number; readonly total: number } | undefined;
  readonly indexBytes: number;
  readonly dirtyPages: number;
  readonly lastCommitMs: number;
  readonly bytesRead: number;
  readonly bytesWritten: number;
  readonly readsQueued: number;
  readonly writesQueued: number;
  readonly inFlight: number;
  readonly oldestMicroseconds: number;
  readonly cpuMicroseconds: number;
  readonly endurance: EnduranceSnapshot;
  readonly counters: Readonly<NvmeCounters>;
}

export function deviceSnapshot(device: Device): DeviceSnapshot {
  const disk = device.diskCounters();
  const { segments, plan, info } = device;
  const { preparing } = segments;
  return {
    device: device.index,
    directory: device.directory,
    health: device.health,
    full: device.full,
    draining: device.draining,
    rebuilding: device.rebuilding,
    mode: info.mode,
    direct: info.direct,
    capacityBytes: segments.count * info.segmentBytes,
    budgetBytes: plan?.budgetBytes ?? 0,
    segments: segments.count,
    segmentsTarget: plan?.target ?? segments.count,
    preparing: preparing && { done: preparing.done, total: preparing.total },
    indexBytes: device.deviceIndex.bytes,
    dirtyPages: device.marks.dirtyPages,
    lastCommitMs: device.lastCommitMs,
    bytesRead: disk.bytesRead,
    bytesWritten: disk.bytesWritten,
    readsQueued: disk.readsQueued,
    writesQueued: disk.writesQueued,
    inFlight: disk.inFlight,
    oldestMicroseconds: disk.oldestMicroseconds,
    cpuMicroseconds: disk.cpuMicroseconds,
    endurance: device.endurance.snapshot(Date.now()),
    counters: device.counters,
  };
}
