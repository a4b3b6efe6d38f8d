/**
 * The composition root: builds ledger, DRAM tier, engine API and edge from one configuration, starts them
 * in the order in which engines need them, reloads what can change live, and stops in order. Engines are
 * served as soon as the header scan is in; pre-touching and the edge follow and delay nobody.
 */
import { randomBytes, randomUUID } from "node:crypto";
import { mkdirSync, rmSync } from "node:fs";
import { availableParallelism } from "node:os";
import { dirname } from "node:path";
import { monitorEventLoopDelay } from "node:perf_hooks";
import { type Addon, EVENT_WORDS } from "../addon/binding.ts";
import { loadAddon } from "../addon/load.ts";
import { DramTier } from "../tiers/dram/index.ts";
import { recoverDram } from "../tiers/dram/recover.ts";
import type { IndexProbe } from "../tiers/nvme/probe.ts";
import type { RecoveryReport } from "../tiers/tier.ts";
import { assert } from "./assert.ts";
import { bundled } from "./bundle/place.ts";
import { ledgerBlocks } from "./config/defaults.ts";
import { NvmeParts } from "./daemon/nvme.ts";
import { probeIndexes } from "./daemon/probes.ts";
import { RecordsCheck } from "./daemon/records.ts";
import type { RemoteParts } from "./daemon/remote.ts";
import { autoCopyThreads, settingsOf, tenantsOf } from "./daemon/settings.ts";
import { diffConfig, liveOnly, overlayConfig } from "./config/reload.ts";
import type { Config } from "./config/schema.ts";
import type { ConfigApplied, NodeSnapshot, Notice } from "./edge/contract.ts";
import { type EdgeHandle, startEdge } from "./edge/edge.ts";
import { namespaceTable } from "./edge/ledger-reader.ts";
import type { EngineSettings } from "./engine-api/context.ts";
import { Namespaces, namespacesPerTenant } from "./engine-api/namespaces.ts";
import { farewellFrames } from "./engine-api/farewell.ts";
import { MAGIC, PROTOCOL_VERSION } from "./engine-api/protocol.ts";
import { EngineServer } from "./engine-api/server.ts";
import { CairnError } from "./errors.ts";
import { explainKey, type ExplainSources } from "./explain.ts";
import { Ledger } from "./ledger/ledger.ts";
import * as R from "./ledger/table.ts";
import { TIER } from "./ledger/types.ts";
import { LIMITS } from "./limits.ts";
import { dramSnapshot, type LowerReadings, nodeSnapshot, publishGauges } from "./node-snapshot.ts";
import { Feed, METRIC } from "./observe/feed.ts";
import { LruPolicy } from "./policy/lru.ts";
import { tenantStats } from "./tenant-stats.ts";
import { poolWarning } from "./pool-threads.ts";
import { PoolResizer } from "./transfer/resizer.ts";
import { persistAges } from "./transfer/ages.ts";

const TICK_MS = 25;
const GAUGES_MS = 250;
const SWEEP_RECORDS = 4_096;
const EVENTS = 4_096;
const STATUS_BYTES = 1 << 20;
const STOP_POLL_MS = 2;

export interface Logger {
  level: string;
  debug(fields: object, message: string): void;
  info(fields: object, message: string): void;
  warn(fields: object, message: string): void;
  error(fields: object, message: string): void;
}

export interface DaemonOptions {
  readonly logger: Logger;
  readonly version: string;
  /** Default true; tests of the engine API run without HTTP. */
  readonly edge?: boolean;
  readonly addon?: Addon;
  /** Readers of the indexes that are at work already; else start() begins them. */
  readonly probes?: readonly IndexProbe[];
}

export interface Daemon {
  readonly feed: Feed;
  readonly epoch: string;
  readonly config: Config;
  readonly recovery: RecoveryReport | undefined;
  /** For tests and the demo's negative control. */
  readonly parts: DaemonParts | undefined;
  /** Resolves when engines are served. @throws CairnError */
  start(): Promise<void>;
  /** Drains and stops; `immediate` cancels what is in flight. Idempotent. */
  stop(immediate?: boolean): Promise<void>;
  /** Applies a whole configuration, or what loads and checks one; counted either way. @throws CairnError configInvalid, restartNeeded; then nothing changed */
  reload(next: Config | (() => Config)): Promise<ConfigApplied>;
  snapshot(): NodeSnapshot;
  /** Resolves with the edge's address once it listens, undefined when it could not. */
  readonly edgeAddress: Promise<string | undefined>;
}

export interface DaemonParts {
  readonly addon: Addon;
  readonly ledger: Ledger;
  readonly dram: DramTier;
  readonly server: EngineServer;
  /** Undefined: the node has no NVMe tier. */
  readonly nvme: NvmeParts | undefined;
}

export function createDaemon(config: Config, options: DaemonOptions): Daemon {
  return new NodeDaemon(config, options);
}

class NodeDaemon implements Daemon {
  readonly feed = new Feed();
  readonly epoch = randomUUID();
  config: Config;
  recovery: RecoveryReport | undefined;
  parts: DaemonParts | undefined;
  edgeAddress: Promise<string | undefined> = Promise.resolve(undefined);
  readonly #options: DaemonOptions;
  readonly #log: Logger;
  readonly #settings: EngineSettings;
  readonly #watermarks: { blocksMax: number; highWatermark: number; lowWatermark: number };
  readonly #keyWords: Uint8Array;
  readonly #timers: NodeJS.Timeout[] = [];
  readonly #loopDelay = monitorEventLoopDelay({ resolution: 10 });
  readonly #startedMs = Date.now();
  readonly #warn = (line: string): void => this.#note("warn", line);
  #resizer: PoolResizer | undefined;
  #remote: RemoteParts | undefined;
  #edge: EdgeHandle | undefined;
  #toldDevices = "";
  #stopping: Promise<void> | undefined;
  #immediate = false;

  constructor(config: Config, options: DaemonOptions) {
    this.config = config;
    this.#options = options;
    this.#log = options.logger;
    this.#settings = settingsOf(config, 0);
    const { blocksMax, highWatermark, lowWatermark } = config.dram;
    this.#watermarks = { blocksMax, highWatermark, lowWatermark };
    this.#keyWords = namespaceTable(config.ledger.namespacesMax);
  }

  async start(): Promise<void> {
    assert(this.parts === undefined, "a daemon is started once");
    const began = performance.now();
    const addon = this.#options.addon ?? loadAddon();
    const inbox = new ArrayBuffer(LIMITS.inboxBytes);
    const events = new Uint32Array(EVENTS * EVENT_WORDS);
    const statuses = new Uint8Array(STATUS_BYTES);
    this.#startAddon(addon, inbox, events, statuses);
    let dram: DramTier | undefined;
    // Reading the indexes takes longest: it begins first, in processes of its own.
    const probes = this.#options.probes ?? probeIndexes(this.config.nvme);
    try {
      dram = this.#openDram(addon);
      const nvme = this.#openNvme(addon);
      await nvme?.readIndexes(probes);
      this.parts = this.#assemble({ addon, dram, nvme }, inbox, events, statuses);
      await this.#recover(this.parts);
      this.#listen(addon);
    } catch (error) {
      this.parts = undefined;
      for (const probe of probes) probe.stop();
      dram?.abandon();
      addon.stop();
      throw error;
    }
    this.parts.dram.populate();
    this.parts.nvme?.begin(this.parts.server, (block) => this.#remote?.uploader.offer(block));
    this.#startTimers(this.parts);
    this.feed.set(METRIC.ready, 1);
    this.feed.set(METRIC.startTime, this.#startedMs / 1_000);
    this.feed.set(METRIC.restartSeconds, process.uptime());
    const milliseconds = Math.round(performance.now() - began);
    const { socket } = this.config.engineApi;
    const from = bundled ? "bundle" : "sources";
    this.#log.info({ socket, epoch: this.epoch, milliseconds, from }, "serving engines");
    if (this.config.remote.enabled) await this.#openRemote(this.parts);
    if (this.#options.edge !== false) this.edgeAddress = this.#startEdge(this.parts);
  }

  #startAddon(addon: Addon, inbox: ArrayBuffer, events: Uint32Array, statuses: Uint8Array): void {
    const { dram, engineApi } = this.config;
    const cpus = availableParallelism();
    const copyThreads = dram.copyThreads === 0 ? autoCopyThreads(cpus) : dram.copyThreads;
    addon.start({
      copyThreads,
      inbox,
      events,
      statuses,
      transport: {
        frameBodyBytesMax: LIMITS.frameBodyBytesMax,
        connectionsMax: engineApi.connectionsMax,
        outboundBytesMax: LIMITS.outboundBytesMax,
        frameTimeoutMs: engineApi.frameTimeoutMs,
        helloTimeoutMs: engineApi.helloTimeoutMs,
        magic: MAGIC,
        version: PROTOCOL_VERSION,
        ...farewellFrames(),
      },
      onReady: () => this.parts?.server.pump(),
    });
  }

  #openDram(addon: Addon): DramTier {
    const { dram } = this.config;
    const options = { ...dram, hugePages: dram.hugePages === "auto" };
    const note = (line: string): void => this.#note("info", line);
    const progress = (stage: string, done: number, total: number): void =>
      this.#log.debug({ stage, done, total }, "dram progress");
    return new DramTier(addon, options, availableParallelism(), { note, progress });
  }

  /** Engines are served already; a node without a remote tier never loads its code. */
  async #openRemote({ server }: DaemonParts): Promise<void> {
    const note = (level: Notice["level"], line: string): void => this.#note(level, line);
    const hooks = { note, fault: (error: unknown) => this.#fault(error) };
    try {
      const remote = await import("./daemon/remote.ts");
      this.#remote = await remote.RemoteParts.open(server, this.config, hooks);
    } catch (error) {
      // The node serves what it has; the store is an operator's to mend.
      this.feed.add(METRIC.remoteLeftOut, 1);
      this.#note("error", `remote: left out for this start: ${String(error)}`);
    }
  }

  #openNvme(addon: Addon): NvmeParts | undefined {
    const { nvme, remote } = this.config;
    if (!nvme.enabled) return undefined;
    const shared = remote.enabled && remote.kind === "directory";
    const warning = poolWarning(nvme.directories.length, shared);
    if (warning !== undefined) this.#warn(warning);
    const note = (level: Notice["level"], line: string): void => this.#note(level, line);
    return new NvmeParts(addon, nvme, { note, fault: (error) => this.#fault(error) });
  }

  #assemble(
    { addon, dram, nvme }: Pick<DaemonParts, "addon" | "dram" | "nvme">,
    inbox: ArrayBuffer,
    events: Uint32Array,
    statuses: Uint8Array,
  ): DaemonParts {
    const { config } = this;
    const tenants = tenantsOf(config);
    const tenantIndex = new Map(tenants.map(({ name }, index) => [name, index]));
    Object.assign(this.#settings, settingsOf(config, dram.capacityBytes));
    const dramOptions = Object.assign(dram.ledgerOptions(this.#watermarks), this.#watermarks);
    const ledger = new Ledger(
      {
        blocksMax: ledgerBlocks(config, dram.capacityBytes, nvme?.plannedBytes ?? 0),
        namespacesMax: config.ledger.namespacesMax,
        tenantsMax: tenants.length + 1,
        tiers: [dramOptions, nvme?.ledgerOptions()],
        holesMax: LIMITS.holesMax,
        splitSamplesMax: LIMITS.splitSamplesMax,
        logEntries: LIMITS.visibilityLogEntries,
        observer: {
          settled: (block, visible) => server.settled(block, visible),
          leaseReduced: (lease, depth) => server.leaseReduced(lease, depth),
        },
      },
      new LruPolicy(),
      randomBytes(4).readUInt32LE(),
    );
    nvme?.attach(ledger, dram.arena);
    const records = new RecordsCheck(ledger, nvme?.plannedSegments ?? 0, this.#warn);
    const { namespacesMax, namespacesPerTenantMax } = config.ledger;
    const perTenantMax = namespacesPerTenant(namespacesMax, namespacesPerTenantMax, tenants.length);
    const namespaces = new Namespaces(
      ledger,
      dram,
      { namespacesMax, perTenantMax },
      tenantIndex,
      (namespace) => {
        this.#keyWords[namespace.index] = namespace.keyWords;
        nvme?.bind(namespace);
        records.opened(namespace.index);
      },
    );
    const server: EngineServer = new EngineServer({
      addon,
      ledger,
      feed: this.feed,
      namespaces,
      settings: this.#settings,
      tenants,
      arena: dram.arena,
      nvme: nvme?.tier,
      epoch: this.epoch,
      nodeName: config.node.name,
      inbox,
      events,
      statuses,
      nodeStats: (tenant) => statsFor(tenant, tenantIndex, ledger, dram),
      onProgress: (task, done, total, outcome, errno) => {
        if (dram.onProgress(task, done, total, outcome)) return;
        nvme?.onProgress(task, done, total, outcome, errno);
      },
      onInternalError: (error) => this.#fault(error),
      warn: this.#warn,
    });
    addon.attachLedger(recordLayout(ledger));
    return { addon, ledger, dram, server, nvme };
  }

  async #recover({ ledger, dram, server, addon, nvme }: DaemonParts): Promise<void> {
    const { namespaces } = server.context;
    if (!namespaces.restore(dram.namespaces())) {
      this.#note("error", "dram: the namespace table is damaged; the pool starts empty");
      for (const { slab, payloadBytes } of addon.arenaSlabs(dram.arena)) {
        if (payloadBytes > 0) addon.arenaRelease(dram.arena, slab);
      }
    }
    const found = (index: number): void => {
      const namespace = namespaces.at(index);
      assert(namespace !== undefined, "recovered blocks lie in known namespaces");
      namespace.recovered = true;
    };
    nvme?.unite(namespaces);
    // The headers of the pool are read beside; they are offered when every entry of the indexes was.
    const scanned = dram.reopened ? dram.scan() : Promise.resolve();
    const below = await nvme?.recover(ledger, found).finally(() => scanned);
    if (below !== undefined) {
      this.feed.add(METRIC.recoveredBlocks, below.recovered);
      this.feed.addAt(METRIC.droppedBlocks, 1, below.dropped);
      this.#log.info({ ...below }, "nvme index read");
    }
    const report = await recoverDram(dram, ledger, namespaces.size, { found }, scanned);
    namespaces.settled = () => nvme?.adopting !== true;
    this.recovery = report;
    this.feed.add(METRIC.recoveredBlocks, report.recovered);
    this.feed.addAt(METRIC.droppedBlocks, 1, report.dropped);
    this.#log.info({ ...report, slabs: dram.slabs }, "dram pool open");
  }

  /** @throws CairnError directoryLocked (a live daemon on the socket), directoryUnsafe */
  #listen(addon: Addon): void {
    const { engineApi, tenants } = this.config;
    const paths = [engineApi.socket, ...tenants.map(({ socket }) => socket)];
    for (const [listener, path] of paths.entries()) {
      if (path === undefined) continue;
      try {
        mkdirSync(dirname(path), { recursive: true, mode: 0o700 });
        addon.listen(path, engineApi.socketMode, listener);
      } catch (error) {
        const code = (error as { code?: unknown }).code;
        const name =
          code === "EADDRINUSE" || code === "LOCKED" ? "directoryLocked" : "directoryUnsafe";
        throw new CairnError(name, `engineApi socket ${path}: ${String(error)}`);
      }
    }
  }

  #startTimers({ ledger, dram, server, addon, nvme }: DaemonParts): void {
    this.#resizer = new PoolResizer(ledger, dram, server.context.copies, (line) =>
      this.#note("info", line),
    );
    let sweeping = false;
    const tick = (): void =>
      this.#guarded(() => {
        server.tick();
        if (sweeping || ledger.holeCount > 0) sweeping = ledger.sweep(SWEEP_RECORDS);
        ledger.evictToWatermark(TIER.DRAM, nvme !== undefined);
        nvme?.tick(ledger);
        this.#remote?.tick();
        this.#resizer?.step();
      });
    this.#timers.push(setInterval(tick, TICK_MS));
    this.#loopDelay.enable();
    const gauge = (): void => {
      const lower = this.#lower();
      publishGauges(this.feed, ledger, dram, addon, lower);
      this.#tellDevices(lower);
      nvme?.publish(this.feed, ledger);
      server.context.links.publish(this.feed);
      const delay = this.#loopDelay.max / 1e9;
      if (Number.isFinite(delay)) this.feed.observe(METRIC.eventLoopSeconds, delay);
      this.#loopDelay.reset();
    };
    const gauges = (): void => this.#guarded(gauge);
    gauges();
    this.#timers.push(setInterval(gauges, GAUGES_MS));
    if (process.env["CAIRN_TEST_AUDIT"] === "1") this.#timers.push(this.#audit(ledger));
  }

  /** For tests: every count of the ledger is derived again from scratch, several times a second. */
  #audit(ledger: Ledger): NodeJS.Timeout {
    return setInterval(() => this.#guarded(() => ledger.audit()), GAUGES_MS);
  }

  /** What a timer does: an exception is a fault in cairn that the next turn may well survive. */
  #guarded(act: () => void): void {
    try {
      act();
    } catch (error) {
      this.#fault(error);
    }
  }

  async #startEdge({ ledger }: DaemonParts): Promise<string | undefined> {
    try {
      this.#edge = await startEdge({
        config: this.config.edge,
        feed: this.feed.buffer,
        ledger: { view: ledger.share(), keyWords: this.#keyWords },
        info: {
          node: this.config.node.name,
          version: this.#options.version,
          epoch: this.epoch,
          pid: process.pid,
          startedMs: this.#startedMs,
          engineSocket: this.config.engineApi.socket,
        },
        handler: {
          snapshot: () => this.snapshot(),
          config: () => this.config,
          configPut: (document) =>
            this.reload(() => overlayConfig(this.config, document, "PUT /v1/config")),
          explain: (key) => explainKey(this.#explainSources(), key),
        },
        onFailure: (error) => this.#fault(error),
      });
      this.#log.info({ address: this.#edge.address }, "edge listens");
      return this.#edge.address;
    } catch (error) {
      // Operators are blind now, engines are not: serving goes on.
      this.#fault(error);
      return undefined;
    }
  }

  snapshot(): NodeSnapshot {
    assert(this.parts !== undefined, "the daemon runs");
    return nodeSnapshot(this.parts.server, this.parts.ledger, this.parts.dram, this.#lower());
  }

  #explainSources(): ExplainSources {
    assert(this.parts !== undefined, "the daemon runs");
    const { ledger, nvme, server } = this.parts;
    const { namespaces, notStored } = server.context;
    const below = nvme?.explainSource();
    const remote = this.#remote?.explainSource();
    const nowMs = Date.now();
    return { ledger, namespaces: namespaces.list, notStored, nvme: below, remote, nowMs };
  }

  /** The feed knows devices by number; the edge is told their directories when these change. */
  #tellDevices({ devices }: LowerReadings): void {
    if (this.#edge === undefined) return;
    const directories: string[] = [];
    for (const { device, directory } of devices) directories[device] = directory;
    const text = directories.join("\n");
    if (text === this.#toldDevices) return;
    this.#toldDevices = text;
    this.#edge.devices(Array.from(directories, (directory) => directory ?? ""));
  }

  /** What the lower tiers and the links say of themselves now. */
  #lower(): LowerReadings {
    assert(this.parts !== undefined, "the daemon runs");
    const { ledger, nvme, server } = this.parts;
    return {
      devices: nvme?.readings(ledger) ?? [],
      remote: this.#remote?.reading() ?? null,
      links: server.context.links.readings(),
    };
  }

  async reload(next: Config | (() => Config)): Promise<ConfigApplied> {
    try {
      const applied = this.#apply(typeof next === "function" ? next() : next);
      this.feed.addAt(METRIC.configReloads, 0, 1);
      return applied;
    } catch (error) {
      this.feed.addAt(METRIC.configReloads, 1, 1);
      throw error;
    }
  }

  #apply(next: Config): ConfigApplied {
    const { live, restartNeeded } = diffConfig(this.config, next);
    if (restartNeeded.length > 0) {
      const fields = restartNeeded.map(({ path }) => path).join(", ");
      throw new CairnError("restartNeeded", `needs a restart: ${fields}`);
    }
    const { parts } = this;
    assert(parts !== undefined, "a running daemon is reloaded");
    const config = liveOnly(this.config, next);
    const capacity = config.dram.capacityBytes;
    if (capacity !== this.config.dram.capacityBytes && capacity !== "auto") {
      const slabs = Math.floor(capacity / parts.dram.slabBytes);
      this.#resizer?.aim(slabs, config.dram.directory);
    }
    this.config = config;
    Object.assign(this.#settings, settingsOf(config, parts.dram.capacityBytes));
    const { highWatermark, lowWatermark } = config.dram;
    const tierOptions = parts.ledger.core.tier(TIER.DRAM).options;
    Object.assign(tierOptions, { highWatermark, lowWatermark });
    parts.nvme?.reload(config.nvme, parts.server.context.namespaces);
    this.#remote?.reload();
    this.#log.level = config.log.level;
    const applied = live.map(({ path }) => path);
    this.#log.info({ applied }, "configuration reloaded");
    return { applied, config };
  }

  stop(immediate = false): Promise<void> {
    this.#immediate ||= immediate;
    this.#stopping ??= this.#stop();
    return this.#stopping;
  }

  async #stop(): Promise<void> {
    const { parts } = this;
    if (parts === undefined) return;
    const { addon, dram, ledger, nvme, server } = parts;
    this.feed.set(METRIC.ready, 0);
    server.drain();
    this.#unlisten(addon);
    const until = performance.now() + LIMITS.drainMs;
    while (server.jobsInFlight > 0 && !this.#immediate && performance.now() < until) await pause();
    server.cancelAll();
    const cut = performance.now() + LIMITS.drainMs;
    while (server.jobsInFlight > 0 && performance.now() < cut) await pause();
    await server.prefetcher.stop();
    await this.#remote?.close();
    await nvme?.drain(this.#immediate ? 0 : LIMITS.drainMs);
    await nvme?.close(this.#immediate ? 0 : LIMITS.nvmeStopRefreshMs);
    await this.#resizer?.stop();
    for (const timer of this.#timers) clearInterval(timer);
    this.#loopDelay.disable();
    await this.edgeAddress; // It may still be starting.
    await this.#edge?.stop();
    // A pool is closed between helpers' steps; pre-touching a large one may take its time.
    while (dram.busy && !this.#immediate) await pause();
    server.stop();
    const keep = this.config.dram.keepOnStop;
    if (keep) persistAges(ledger, addon, dram.arena);
    if (!dram.busy) dram.close(keep);
    addon.stop();
    this.#log.info({ keep }, "stopped");
  }

  #unlisten(addon: Addon): void {
    const { engineApi, tenants } = this.config;
    const paths = [engineApi.socket, ...tenants.map(({ socket }) => socket)];
    for (const [listener, path] of paths.entries()) {
      if (path === undefined) continue;
      addon.unlisten(listener);
      rmSync(path, { force: true });
    }
  }

  #note(level: Notice["level"], text: string): void {
    this.#log[level]({}, text);
    this.#edge?.notice({ level, text });
  }

  #fault(error: unknown): void {
    const text = error instanceof Error ? (error.stack ?? error.message) : String(error);
    this.#note("error", `a fault in cairn: ${text}`);
  }
}

function pause(): Promise<void> {
  return new Promise((resolve) => {
    setTimeout(resolve, STOP_POLL_MS);
  });
}

/** With several tenants each sees its own share alone. */
function statsFor(
  tenant: string,
  tenants: ReadonlyMap<string, number>,
  ledger: Ledger,
  dram: DramTier,
): object {
  if (tenants.size === 1) return dramSnapshot(ledger, dram);
  return tenantStats(ledger, tenant, tenants.get(tenant) ?? tenants.size);
}

function recordLayout(ledger: Ledger) {
  return {
    records: ledger.core.records,
    recordWords: R.RECORD_WORDS,
    keyWord: R.KEY,
    parentWord: R.PARENT,
    depthWord: R.DEPTH,
    depthMask: R.DEPTH_MASK,
    namespaceWord: R.NAMESPACE,
    namespaceMask: R.NAMESPACE_MASK,
  };
}
