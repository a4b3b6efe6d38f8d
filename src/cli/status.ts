/** `cairn status`: one reading of the daemon, for people or as JSON. */
import { formatBytes, formatSeconds } from "../config/units.ts";
import type {
  InstanceSnapshot,
  LinkSnapshot,
  NamespaceSnapshot,
  NodeInfo,
  TierSnapshot,
} from "../edge/contract.ts";
import type { DeviceDigest, Digest } from "../edge/digest.ts";
import type { DeviceReading, RemoteReading } from "../observe/lower.ts";
import { readArguments } from "./arguments.ts";
import { EDGE_OPTIONS, type EdgeClient, edgeClient } from "./client.ts";
import { EXIT } from "./exit.ts";
import { bar, duration, percent, printJson, printLine, rate, table } from "./output.ts";

export interface Stats extends NodeInfo, Digest {
  readonly uptimeSeconds: number;
  readonly instances: readonly InstanceSnapshot[];
}

export interface Status {
  readonly address: string;
  readonly stats: Stats;
  readonly tiers: readonly TierSnapshot[];
  readonly devices: readonly DeviceReading[];
  readonly remote: RemoteReading | null;
  readonly links: readonly LinkSnapshot[];
  readonly namespaces: readonly NamespaceSnapshot[];
}

const NAMESPACES_SHOWN = 16;

type Tiers = Pick<Status, "tiers" | "devices" | "remote" | "links">;

export async function readStatus(client: EdgeClient): Promise<Status> {
  const [stats, { tiers, devices, remote, links }, { namespaces }] = await Promise.all([
    client.get<Stats>("/v1/stats"),
    client.get<Tiers>("/v1/tiers"),
    client.get<{ readonly namespaces: readonly NamespaceSnapshot[] }>("/v1/namespaces"),
  ]);
  return { address: client.address, stats, tiers, devices, remote, links, namespaces };
}

function tierLines(tiers: readonly TierSnapshot[]): string {
  const rows = tiers.map((tier) => {
    const share = tier.capacityBytes > 0 ? tier.usedBytes / tier.capacityBytes : 0;
    const used = `${formatBytes(tier.usedBytes)} of ${formatBytes(tier.capacityBytes)}`;
    const slots = `${tier.slotsUsed} of ${tier.slots}`;
    return [
      tier.tier,
      tier.state,
      bar(share, 20),
      percent(share),
      used,
      `${tier.visibleBlocks}`,
      slots,
    ];
  });
  return table(["tier", "state", "", "", "used", "readable blocks", "slots"], rows, [3, 5, 6]);
}

/** `3 years`, `40 days`, or a dash where nothing is rated or written. */
export function lifeWords(days: number | null): string {
  if (days === null) return "–";
  return days > 730 ? `${Math.round(days / 365)} years` : `${Math.round(days)} days`;
}

/** States have one name in figures (`readOnly`), and one for people. */
export function healthWord(health: string): string {
  return health === "readOnly" ? "read-only" : health;
}

function stateWords({ health, full, rebuilding, preparing }: DeviceDigest): string {
  const words = [
    healthWord(health),
    ...(full ? ["full"] : []),
    ...(rebuilding ? ["rebuilding its index"] : []),
    ...(preparing > 0 ? [`preparing ${preparing}`] : []),
  ];
  return words.join(", ");
}

function deviceRow(device: DeviceDigest, mode: string): readonly string[] {
  const share = device.capacityBytes > 0 ? device.usedBytes / device.capacityBytes : 0;
  const budget = device.writeBudgetBytes > 0 ? ` of ${formatBytes(device.writeBudgetBytes)}` : "";
  return [
    device.directory,
    stateWords(device),
    mode,
    `${formatBytes(device.usedBytes)} (${percent(share)})`,
    rate(device.readBytesPerSecond),
    rate(device.writeBytesPerSecond),
    `${device.queuedReads}/${device.queuedWrites}`,
    `${device.inFlight}`,
    `${formatBytes(device.writtenPerDayBytes)}${budget}`,
    lifeWords(device.lifeDays),
  ];
}

function deviceLines({ stats, devices }: Pick<Status, "stats" | "devices">): string[] {
  const { nvmeLeftOut } = stats.gauges;
  const words = "disks left out, since they could not be opened (see the log):";
  const leftOut = nvmeLeftOut > 0 ? ["", `${words} ${nvmeLeftOut}`] : [];
  if (stats.devices.length === 0) return leftOut;
  const rows = stats.devices.map((device) => {
    const reading = devices.find((one) => one.device === device.device);
    const direct = reading?.direct === true ? "direct" : "buffered";
    return deviceRow(device, reading === undefined ? "" : `${reading.mode}, ${direct}`);
  });
  const head = ["disk", "state", "mode", "used", "read", "written", "waiting r/w", "at disk"];
  const { nvmeReadSeconds, nvmeWriteSeconds, nvmeCommitSeconds } = stats.recent.latencySeconds;
  return [
    "",
    table([...head, "written a day", "life left"], rows, [3, 4, 5, 6, 7, 8, 9]),
    `disk reads ${latency(nvmeReadSeconds)}  writes ${latency(nvmeWriteSeconds)}  ` +
      `written to durable ${latency(nvmeCommitSeconds)}`,
    ...leftOut,
  ];
}

function remoteLines({ stats, remote }: Pick<Status, "stats" | "remote">): string[] {
  if (stats.remote === null || remote === null) return [];
  const { receivedBytesPerSecond, sentBytesPerSecond, transfers, waiting } = stats.remote;
  const { uploadsWaiting } = stats.remote;
  const last = remote.lastFault === "" ? "" : `  last fault: ${remote.lastFault}`;
  return [
    "",
    `remote  ${healthWord(remote.health)}  ${remote.description}${last}`,
    `from it ${rate(receivedBytesPerSecond)}  to it ${rate(sentBytesPerSecond)}  ` +
      `transfers ${transfers}  waiting ${waiting}  chunks to store ${uploadsWaiting}  ` +
      `blocks fetched ${stats.totals.remoteFetchedBlocks}`,
  ];
}

/** What moved between the tiers; nothing where there is one tier. */
function movementLines({ devices, totals }: Stats): string[] {
  if (devices.length === 0) return [];
  return [
    `copied down ${totals.writtenBackBlocks} blocks (${formatBytes(totals.writtenBackBytes)})  ` +
      `brought up ${totals.promotedBlocks}  read past DRAM ${totals.passThroughBlocks}  ` +
      `evicted without a copy below ${totals.evictedUnbacked}`,
  ];
}

function latency(reading: { readonly p50: number; readonly p99: number } | null): string {
  if (reading === null) return "idle";
  return `p50 ${formatSeconds(reading.p50)}, p99 ${formatSeconds(reading.p99)}`;
}

function flowLines({ recent, hitRate }: Digest): string {
  const { latencySeconds: seconds } = recent;
  const hits = `${percent(recent.hitRate)} now, ${percent(hitRate)} since start`;
  return table(
    ["hit rate", hits, ""],
    [
      ["look-ups", `${recent.lookupsPerSecond.toFixed(1)}/s`, latency(seconds.lookupSeconds)],
      ["onboarded", rate(recent.loadBytesPerSecond), latency(seconds.loadSeconds)],
      ["offloaded", rate(recent.storeBytesPerSecond), latency(seconds.storeSeconds)],
    ],
  );
}

function instanceLines(instances: readonly InstanceSnapshot[]): string {
  if (instances.length === 0) return "no engine is connected";
  const rows = instances.map((one) => [
    one.engineId,
    one.engine,
    one.tenant,
    `${one.connections}`,
    `${one.leases}`,
    formatBytes(one.pinnedBytes),
    formatBytes(one.windowBytes),
    `${one.jobs}`,
    `${(one.heartbeatAgeMs / 1_000).toFixed(1)} s`,
  ]);
  const head = ["engine id", "engine", "tenant", "connections", "leases", "pinned", "windows"];
  return table([...head, "jobs", "heartbeat"], rows, [3, 4, 5, 6, 7, 8]);
}

/** The newest first: the digest is what an engine's log names when it connects. */
export function namespaceLines(namespaces: readonly NamespaceSnapshot[]): string[] {
  if (namespaces.length === 0) return [];
  const newest = namespaces.toSorted((one, other) => other.index - one.index);
  const rows = newest
    .slice(0, NAMESPACES_SHOWN)
    .map(({ digest, descriptor, tenant, visibleBlocks }) => [
      digest,
      modelOf(descriptor),
      tenant,
      `${visibleBlocks}`,
    ]);
  const more = newest.length - rows.length;
  return [
    "",
    table(["namespace", "model", "tenant", "readable blocks"], rows, [3]),
    ...(more > 0 ? [`and ${more} older namespaces (--json lists them)`] : []),
  ];
}

function modelOf(descriptor: NamespaceSnapshot["descriptor"]): string {
  return typeof descriptor["model"] === "string" ? descriptor["model"] : "unknown model";
}

function unprovenLines(namespaces: readonly NamespaceSnapshot[]): string[] {
  return namespaces
    .filter(({ unprovenBy }) => unprovenBy.length > 0)
    .map(
      ({ digest, descriptor, unprovenBy }) =>
        `  ${digest} (${modelOf(descriptor)}) must be proven by ${unprovenBy.join(", ")}`,
    );
}

/** The faults an operator should know of: counts above zero. */
export function faultWords({ totals }: Digest): string[] {
  const rows: readonly (readonly [keyof Digest["totals"], string])[] = [
    ["corruptBlocks", "corrupt blocks dropped"],
    ["identityFailures", "slot identity failures"],
    ["proofFailures", "incarnation proofs failed"],
    ["leasesExpired", "leases expired"],
    ["deadlineMisses", "deadlines missed"],
    ["fillTimeouts", "fills that never came"],
    ["fullRefusals", "blocks refused, tier full"],
    ["chainMismatches", "chain mismatches"],
    ["nvmeIoErrors", "disk errors"],
    ["nvmeSyncFailures", "disk syncs failed"],
    ["scrubFailures", "bad copies found at idle"],
    ["remoteCorruptBlocks", "bad blocks in objects"],
    ["remoteCorruptObjects", "bad objects"],
    ["remoteMisplacedObjects", "objects under a wrong name"],
    ["remoteLeftOut", "remote tier left out at the start"],
  ];
  return rows.flatMap(([name, words]) => (totals[name] > 0 ? [`${totals[name]} ${words}`] : []));
}

/** Who, since when, tiers and flow. */
export function statusHead(status: Status): string {
  const { address, stats, tiers } = status;
  const state = stats.gauges.ready === 1 ? "serving" : "not serving";
  return [
    `${stats.node}  cairn ${stats.version}  ${state}  up ${duration(stats.uptimeSeconds)}  pid ${stats.pid}`,
    `engines: ${stats.engineSocket}  edge: ${address}`,
    "",
    tierLines(tiers),
    ...deviceLines(status),
    ...remoteLines(status),
    "",
    flowLines(stats),
    ...movementLines(stats),
  ].join("\n");
}

/** Orphans, namespaces, faults, engines. */
export function statusTail({ stats, namespaces }: Status): string {
  const { orphans, holes, leases, pinnedBytes } = stats.gauges;
  const unproven = unprovenLines(namespaces);
  const faults = faultWords(stats);
  return [
    `orphans ${orphans}  holes ${holes}  leases ${leases}  pinned ${formatBytes(pinnedBytes)}  ` +
      `namespaces ${namespaces.length}`,
    unproven.length === 0 ? "unproven namespaces: none" : "unproven namespaces:",
    ...unproven,
    faults.length === 0 ? "faults since start: none" : `faults since start: ${faults.join(", ")}`,
    "",
    instanceLines(stats.instances),
  ].join("\n");
}

export async function statusCommand(words: readonly string[]): Promise<number> {
  const parsed = readArguments(words, EDGE_OPTIONS);
  const status = await readStatus(edgeClient(parsed));
  if (parsed.json) printJson(status);
  else {
    const spaces = namespaceLines(status.namespaces).map((line) => `${line}\n`);
    printLine(`${statusHead(status)}\n${spaces.join("")}\n${statusTail(status)}`);
  }
  return EXIT.OK;
}
