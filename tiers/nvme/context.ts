/** What a device is made of besides its directory: its entry of the configuration, and what all devices share. */
import type { Addon, DiskInfo } from "../../addon/binding.ts";
import type { Ledger } from "../../src/ledger/ledger.ts";
import type { NamespaceRow } from "./namespaces.ts";
import type { Tasks } from "./tasks.ts";

/** One entry of the configuration. */
export interface NvmeDirectoryOptions {
  readonly path: string;
  /** Bytes of everything in it; `auto`: what is free there, less the head-room. */
  readonly capacityBytes: number | "auto";
  /** 0 = none. */
  readonly writeBudgetBytesPerDay: number;
  /** 0 = unknown. */
  readonly ratedWriteBytes: number;
}

export type DeviceAddon = Pick<
  Addon,
  | "diskOpen"
  | "diskClose"
  | "diskSegments"
  | "diskPrepare"
  | "diskAttach"
  | "diskDetach"
  | "diskAssign"
  | "diskRelease"
  | "diskSlotsPerSegment"
  | "diskRestore"
  | "diskGenerations"
  | "diskScan"
  | "diskScanRead"
  | "diskSync"
  | "diskCounters"
>;

export interface DeviceHooks {
  readonly note: (level: "info" | "warn" | "error", line: string) => void;
  /** A programming fault; not the device's. */
  readonly fault: (error: unknown) => void;
  /** A block on a device that is being drained and may not be evicted: bring it to DRAM, then it may. */
  readonly promote: (block: number) => void;
}

/** The parts that all devices share. */
export interface DeviceContext {
  readonly addon: DeviceAddon;
  readonly tasks: Tasks;
  readonly hooks: DeviceHooks;
  /** undefined until attach(). */
  ledger: Ledger | undefined;
  readonly namespace: (index: number) => NamespaceRow | undefined;
  /** Opens a directory's disk. @throws CairnError */
  readonly open: (directory: string) => DiskInfo;
}
