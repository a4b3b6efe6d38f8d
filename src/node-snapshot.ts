/**
 * What the node says of itself: gauges for the feed, the snapshot and the explanations that the edge asks
 * for. Reads the ledger's own counts; nothing here walks blocks on the hot path.
 */
import type { Addon } from "../addon/binding.ts";
import type { LinkSnapshot, NodeSnapshot, TierSnapshot } from "./edge/contract.ts";
import { proofNeeded } from "./engine-api/op-lookup.ts";
import type { EngineServer } from "./engine-api/server.ts";
import type { Namespace } from "./engine-api/namespaces.ts";
import type { Ledger } from "./ledger/ledger.ts";
import { STATE, TIER, TIER_NAMES } from "./ledger/types.ts";
import { type Feed, METRIC } from "./observe/feed.ts";
import {
  type DeviceReading,
  publishDevices,
  publishRemote,
  type RemoteReading,
} from "./observe/lower.ts";

interface Capacity {
  readonly capacityBytes: number;
  readonly slabBytes: number;
}

/** What the lower tiers and the links say of themselves; a tier that is absent has nothing to say. */
export interface LowerReadings {
  readonly devices: readonly DeviceReading[];
  readonly remote: RemoteReading | null;
  readonly links: readonly LinkSnapshot[];
}

const NO_LOWER: LowerReadings = { devices: [], remote: null, links: [] };

type DeviceFigures = Omit<DeviceReading, "usedBytes">;

/** Gathers what the lower tiers say; what is used of a device only the ledger knows. */
export function lowerReadings(
  ledger: Ledger,
  nvme: { snapshot(): readonly DeviceFigures[] } | undefined,
  remote: { snapshot(): RemoteReading } | undefined,
  links: { readings(): readonly LinkSnapshot[] },
): LowerReadings {
  const { tiers } = ledger.core;
  const slots = tiers[TIER.NVME]?.slots;
  const devices = (nvme?.snapshot() ?? []).map((figures) => {
    const total = slots?.slotsTotalOf(figures.device) ?? 0;
    const share = total > 0 ? slots!.slotsUsedOf(figures.device) / total : 0;
    return { ...figures, usedBytes: Math.round(share * figures.capacityBytes) };
  });
  return { devices, remote: remote?.snapshot() ?? null, links: links.readings() };
}

function tierSnapshot(
  ledger: Ledger,
  index: number,
  capacityBytes: number,
  state: TierSnapshot["state"],
): TierSnapshot {
  const tier = ledger.core.tier(index);
  const { slots } = tier;
  let usedBytes = 0;
  for (const entry of slots.classes) usedBytes += entry.used * entry.payloadBytes;
  return {
    tier: TIER_NAMES[index] ?? "unknown",
    state,
    capacityBytes,
    usedBytes,
    blocks: tier.blocks,
    visibleBlocks: tier.stateBlocks[STATE.VISIBLE] ?? 0,
    slots: slots.slotsTotal,
    slotsUsed: slots.slotsUsed,
    slabs: slots.slabs,
    slabsFree: slots.slabsFree,
    classes: slots.classes.map(({ payloadBytes, slabs, slotsPerSlab, used }) => ({
      payloadBytes,
      slabs,
      slots: slabs * slotsPerSlab,
      slotsUsed: used,
    })),
  };
}

const ABSENT_NVME: TierSnapshot = {
  tier: "nvme",
  state: "absent",
  capacityBytes: 0,
  usedBytes: 0,
  blocks: 0,
  visibleBlocks: 0,
  slots: 0,
  slotsUsed: 0,
  slabs: 0,
  slabsFree: 0,
  classes: [],
};

function nvmeSnapshot(ledger: Ledger, devices: readonly DeviceReading[]): TierSnapshot {
  if (devices.length === 0) return ABSENT_NVME;
  const capacityBytes = devices.reduce((sum, device) => sum + device.capacityBytes, 0);
  const fenced = devices.every(({ health }) => health === "fenced");
  return tierSnapshot(ledger, TIER.NVME, capacityBytes, fenced ? "fenced" : "serving");
}

/** The DRAM tier alone, from counts that stand ready: what STATS answers. */
export function dramSnapshot(ledger: Ledger, pool: Capacity): TierSnapshot {
  return tierSnapshot(ledger, TIER.DRAM, pool.capacityBytes, "serving");
}

/** Visible blocks of each namespace, by one pass over the table; for a person who asks. */
function visibleByNamespace(ledger: Ledger, namespaces: number): Float64Array {
  const visible = new Float64Array(namespaces);
  const { core } = ledger;
  for (let block = 0; block < core.table.touched; block++) {
    if (!core.inUse(block) || !core.isVisible(block)) continue;
    const index = core.namespaceOf(block).index;
    visible[index] = visible[index]! + 1;
  }
  return visible;
}

/** The whole node, plain data. */
export function nodeSnapshot(
  server: EngineServer,
  ledger: Ledger,
  pool: Capacity,
  lower: LowerReadings = NO_LOWER,
): NodeSnapshot {
  const { sessions, namespaces, jobs } = server.context;
  const visible = visibleByNamespace(ledger, namespaces.size);
  const instances = [...sessions.instances.values()];
  const unprovenBy = (namespace: Namespace): string[] =>
    instances
      .filter((instance) =>
        instance.views.some(
          (view) => view.namespace === namespace && proofNeeded(server.context, instance, view),
        ),
      )
      .map((instance) => instance.engineId);
  return {
    tiers: [dramSnapshot(ledger, pool), nvmeSnapshot(ledger, lower.devices)],
    ...lower,
    namespaces: namespaces.list.map((namespace) => ({
      index: namespace.index,
      digest: namespace.digestHex,
      tenant: namespace.tenant,
      descriptor: { ...namespace.descriptor },
      visibleBlocks: visible[namespace.index] ?? 0,
      unprovenBy: unprovenBy(namespace),
    })),
    instances: instances.map((instance) => {
      const connections = [...instance.connections];
      return {
        instance: instance.number,
        engineId: instance.engineId,
        engine: instance.engine,
        tenant: instance.tenant,
        uid: instance.uid,
        connections: connections.length,
        leases: instance.leaseCount,
        pinnedBytes: instance.pinnedBytes,
        regions: connections.reduce((sum, { regions }) => sum + regions.size, 0),
        windowBytes: instance.windowBytes,
        jobs: jobs.inFlight === 0 ? 0 : connections.reduce((sum, each) => sum + each.jobs.size, 0),
        heartbeatAgeMs: Math.round(performance.now() - instance.aliveAt),
      };
    }),
  };
}

function publishTier(feed: Feed, ledger: Ledger, index: number, snapshot: TierSnapshot): void {
  feed.setAt(METRIC.tierCapacityBytes, index, snapshot.capacityBytes);
  feed.setAt(METRIC.tierUsedBytes, index, snapshot.usedBytes);
  feed.setAt(METRIC.tierBlocks, index, snapshot.blocks);
  feed.setAt(METRIC.tierVisibleBlocks, index, snapshot.visibleBlocks);
  feed.setAt(METRIC.tierSlots, index, snapshot.slots);
  feed.setAt(METRIC.tierSlotsUsed, index, snapshot.slotsUsed);
  feed.setAt(METRIC.tierSlabs, index, snapshot.slabs);
  feed.setAt(METRIC.tierSlabsFree, index, snapshot.slabsFree);
  feed.setAt(METRIC.evictions, index, ledger.core.tier(index).evictions);
}

/** Gauges that follow the ledger, the addon and the lower tiers; called by the coarse timer. */
export function publishGauges(
  feed: Feed,
  ledger: Ledger,
  pool: Capacity,
  addon: Addon,
  lower: LowerReadings = NO_LOWER,
): void {
  const tier = ledger.core.tier(TIER.DRAM);
  const dram = dramSnapshot(ledger, pool);
  publishTier(feed, ledger, TIER.DRAM, dram);
  if (lower.devices.length > 0)
    publishTier(feed, ledger, TIER.NVME, nvmeSnapshot(ledger, lower.devices));
  publishDevices(feed, lower.devices);
  if (lower.remote !== null) publishRemote(feed, lower.remote);
  feed.set(METRIC.orphans, tier.stateBlocks[STATE.ORPHAN] ?? 0);
  feed.set(METRIC.holes, ledger.holeCount);
  feed.set(METRIC.recordEvictions, ledger.core.recordEvictions);
  feed.set(METRIC.abortedBlocks, ledger.core.aborted);
  feed.set(METRIC.orphansMade, ledger.core.orphaned);
  feed.set(METRIC.holesMade, ledger.core.holesMade);
  feed.set(METRIC.ledgerBlocks, ledger.core.table.used);
  feed.set(METRIC.ledgerBlocksMax, ledger.core.table.blocksMax);
  feed.set(METRIC.ledgerBytes, ledger.bytes);
  const counters = addon.counters();
  feed.set(METRIC.framesSent, counters.framesSent);
  feed.set(METRIC.framesReceivedBytes, counters.bytesReceived);
  feed.set(METRIC.framesSentBytes, counters.bytesSent);
  feed.set(METRIC.connectionsRefused, counters.connectionsRefused);
  feed.set(METRIC.injectedFaults, counters.faultsInjected);
  feed.set(METRIC.inboxStalls, counters.inboxFullStalls);
  feed.set(METRIC.copyQueueBytes, counters.copyQueueBytes);
  feed.set(METRIC.copyBusySeconds, counters.copyBusyMicroseconds / 1e6);
  const memory = process.memoryUsage();
  feed.set(METRIC.heapUsedBytes, memory.heapUsed);
  feed.set(METRIC.residentBytes, memory.rss);
  const { user, system } = process.cpuUsage();
  feed.set(METRIC.cpuSeconds, (user + system) / 1e6);
}
