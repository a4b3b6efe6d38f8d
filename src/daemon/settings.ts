/** What the engine API takes from the configuration. */
import type { Config } from "../config/schema.ts";
import type { EngineSettings } from "../engine-api/context.ts";
import type { Tenant } from "../engine-api/sessions.ts";

const DEFAULT_TENANT = "default";

/** Copy threads where none are configured: a quarter of the CPUs, one to eight. */
export function autoCopyThreads(cpus: number): number {
  return Math.min(8, Math.max(1, Math.floor(cpus / 4)));
}

/** The default tenant, and those that are configured, in the order of their sockets. */
export function tenantsOf(config: Config): Tenant[] {
  const named = config.tenants.map(({ name, uids }) => ({ name, uids: uids ?? [] }));
  return [{ name: DEFAULT_TENANT, uids: [] }, ...named];
}

/** capacityBytes: of the DRAM pool; 0 until it is open. */
export function settingsOf(config: Config, capacityBytes: number): EngineSettings {
  const { engineApi } = config;
  const { pinnedBytesMax } = engineApi;
  return {
    inFlightJobsMax: engineApi.inFlightJobsMax,
    leasesPerInstanceMax: engineApi.leasesPerInstanceMax,
    pinnedBytesMax: pinnedBytesMax === 0 ? capacityBytes / 2 : pinnedBytesMax,
    windowBytesMax: engineApi.windowBytesMax,
    heartbeatMs: engineApi.heartbeatMs,
    heartbeatMisses: engineApi.heartbeatMisses,
    storeFillMs: engineApi.storeFillMs,
    proofRequired: engineApi.proof === "required",
  };
}
