/**
 * The demo's second part (`--nvme`): what does not fit into DRAM, and what another node computed.
 *
 * Two nodes, each a daemon with a DRAM pool too small for the conversations, a disk of its own and one directory that
 * both share. Engine A talks to node 1 until most of what it said lies on the disk alone, and goes on with every
 * conversation: hits come from NVMe. Then engine B goes on with them at node 2, which has never seen them: hits come
 * from the shared directory. Every answer is compared bit for bit with that of an engine without any cache.
 */
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { assert } from "../../../src/assert.ts";
import { CairnError } from "../../../src/errors.ts";
import { ensureGguf } from "../llama/gguf.ts";
import { DaemonProcess, EngineProcess } from "./children.ts";
import { type EngineName, systemPrompt, userMessage } from "./conversations.ts";
import type { Size } from "./demo.ts";
import { tableHead, tableRow } from "./report.ts";
import { compareFloats, type RequestRecord } from "./result.ts";

const MIB = 1024 * 1024;
const POOL_BYTES = 2 * MIB;
const CONVERSATIONS = [1, 2, 3, 4, 5, 6, 7, 8];
const REMOTE_WAIT_MS = 2_000;
const SETTLE_MS = 60_000;
const POLL_MS = 100;

const NVME_BYTES = 'cairn_loaded_tier_bytes_total{tier="nvme"}';
const UPLOADED = 'cairn_uploaded_chunks_total{outcome="stored"}';
const FETCHED = "cairn_remote_fetched_blocks_total";
const WRITTEN_BACK = "cairn_written_back_blocks_total";

export interface LowerResult {
  readonly requests: number;
  readonly poolBytes: number;
  readonly blocksOnDisk: number;
  /** Payload that engine A read back from node 1's disk. */
  readonly nvmeBytes: number;
  readonly tokensCachedFromNvme: number;
  readonly chunksShared: number;
  /** Blocks that node 2 took from the shared directory. */
  readonly blocksFetched: number;
  readonly tokensCachedFromShared: number;
  readonly probabilitiesCompared: number;
  readonly probabilitiesDiffering: number;
  readonly seconds: number;
  readonly ok: boolean;
  readonly problems: readonly string[];
}

interface Node {
  readonly daemon: DaemonProcess;
  readonly socket: string;
}

export class LowerDemo {
  readonly #size: Size;
  readonly #say: (line: string) => void;
  readonly #directory = mkdtempSync(path.join(tmpdir(), "cairn-demo-nvme-"));
  readonly #nodes: Node[] = [];
  readonly #engines = new Map<EngineName, EngineProcess>();
  readonly #records: RequestRecord[] = [];
  readonly #problems: string[] = [];
  readonly #spoken = new Map<number, { tokens: number[]; turn: number }>();
  #reference: EngineProcess | undefined;

  constructor(size: Size, say: (line: string) => void) {
    this.#size = size;
    this.#say = say;
  }

  async run(): Promise<LowerResult> {
    const startMs = performance.now();
    await this.#start();
    const [first, second] = this.#nodes as [Node, Node];
    await this.#phase("node 1: engine A answers; its pool holds a part of it", "A");
    await this.#settled(first.daemon, WRITTEN_BACK);
    const nvmeBefore = await first.daemon.metric(NVME_BYTES);
    const again = await this.#phase("node 1: every conversation goes on, from NVMe", "A");
    const nvmeBytes = (await first.daemon.metric(NVME_BYTES)) - nvmeBefore;
    const chunksShared = await this.#settled(first.daemon, UPLOADED);
    const other = await this.#phase("node 2, which never saw them: from the shared directory", "B");
    const blocksFetched = await second.daemon.metric(FETCHED);
    const blocksOnDisk = await first.daemon.metric(WRITTEN_BACK);
    const seconds = (performance.now() - startMs) / 1_000;
    return this.#result({
      again,
      other,
      nvmeBytes,
      chunksShared,
      blocksFetched,
      blocksOnDisk,
      seconds,
    });
  }

  #result(found: {
    readonly again: readonly RequestRecord[];
    readonly other: readonly RequestRecord[];
    readonly nvmeBytes: number;
    readonly chunksShared: number;
    readonly blocksFetched: number;
    readonly blocksOnDisk: number;
    readonly seconds: number;
  }): LowerResult {
    const { again, other, ...figures } = found;
    const cached = (records: readonly RequestRecord[]): number =>
      records.reduce((sum, { cachedTokens }) => sum + cachedTokens, 0);
    const sum = (pick: (record: RequestRecord) => number): number =>
      this.#records.reduce((total, record) => total + pick(record), 0);
    const differing = sum((record) => record.probabilitiesDiffering);
    const demand = (condition: boolean, problem: string): void => {
      if (!condition) this.#problems.push(problem);
    };
    demand(differing === 0, `${differing} probabilities differ`);
    demand(figures.nvmeBytes > 0 && cached(again) > 0, "nothing was served from NVMe");
    demand(figures.blocksFetched > 0, "nothing came from the shared directory");
    demand(cached(other) > 0, "node 2 served no hit");
    return {
      requests: this.#records.length,
      poolBytes: POOL_BYTES,
      ...figures,
      tokensCachedFromNvme: cached(again),
      tokensCachedFromShared: cached(other),
      probabilitiesCompared: sum((record) => record.probabilitiesCompared),
      probabilitiesDiffering: differing,
      ok: this.#problems.length === 0,
      problems: this.#problems,
    };
  }

  async #start(): Promise<void> {
    const { model } = this.#size;
    const file = ensureGguf(model, path.join(tmpdir(), `cairn-models-${process.getuid?.() ?? 0}`));
    for (const number of [1, 2]) this.#nodes.push(await this.#node(number));
    this.#say(
      `nodes   2, each with a DRAM pool of ${POOL_BYTES / MIB} MiB, a disk, one shared directory`,
    );
    const options = {
      modelPath: file.path,
      contextTokens: model.contextTokens,
      threads: 1,
      stateDirectory: this.#directory,
    };
    for (const [index, name] of (["A", "B"] as const).entries()) {
      const { socket } = this.#nodes[index]!;
      // Engine A has all it needs on its own node.
      const remoteWaitMs = name === "B" ? REMOTE_WAIT_MS : 0;
      const own = { engineId: `demo-${name}`, socket, remoteWaitMs };
      this.#engines.set(name, new EngineProcess({ ...options, ...own }));
    }
    this.#reference = new EngineProcess({ ...options, engineId: "reference", socket: "-" });
    await Promise.all([...this.#engines.values(), this.#reference].map((engine) => engine.ready()));
  }

  async #node(number: number): Promise<Node> {
    const directory = path.join(this.#directory, `node-${number}`);
    const shared = path.join(this.#directory, "shared");
    for (const made of [directory, shared]) mkdirSync(made, { recursive: true, mode: 0o700 });
    const socket = path.join(directory, "engine.sock");
    const edgeSocket = path.join(directory, "edge.sock");
    const configPath = path.join(directory, "cairn.yaml");
    const config = {
      node: { name: `demo-${number}` },
      // A conversation takes more than the half of so small a pool that leases of one engine may hold by default.
      engineApi: { socket, pinnedBytesMax: POOL_BYTES },
      dram: {
        directory: path.join(directory, "pool"),
        capacityBytes: POOL_BYTES,
        slabBytes: MIB / 4,
      },
      nvme: {
        enabled: true,
        directories: [{ path: path.join(directory, "disk"), capacityBytes: 64 * MIB }],
        segmentBytes: 4 * MIB,
        writeThrough: true,
      },
      // Short chunks, so that short conversations fill some.
      remote: { enabled: true, directory: shared, chunkBytesMax: MIB / 4 },
      edge: { listen: `unix:${edgeSocket}` },
      log: { level: "warn" },
    };
    // JSON is YAML.
    writeFileSync(configPath, JSON.stringify(config, null, 2), { mode: 0o600 });
    const logPath = path.join(directory, "daemon.log");
    const daemon = new DaemonProcess({ configPath, socket, edgeSocket, logPath });
    await daemon.start();
    return { daemon, socket };
  }

  /** One turn of each conversation. */
  async #phase(title: string, engine: EngineName): Promise<readonly RequestRecord[]> {
    this.#say(`\n${title}`);
    this.#say(tableHead());
    const records: RequestRecord[] = [];
    for (const conversation of CONVERSATIONS)
      records.push(await this.#request(title, engine, conversation));
    return records;
  }

  async #request(phase: string, engine: EngineName, conversation: number): Promise<RequestRecord> {
    const reference = this.#reference;
    const answering = this.#engines.get(engine);
    assert(reference !== undefined && answering !== undefined, "the engines run");
    const said = this.#spoken.get(conversation);
    const turn = (said?.turn ?? 0) + 1;
    const opening = systemPrompt(conversation, this.#size.systemCharacters);
    const before = said?.tokens ?? (await reference.tokenize(opening));
    const tokens = [...before, ...(await reference.tokenize(userMessage(conversation, turn)))];
    const reply = await answering.generate(tokens, this.#size.newTokens);
    const cold = await reference.generate(tokens, this.#size.newTokens);
    const { compared, differing } = compareFloats(reply.probabilities, cold.probabilities);
    const [error] = reply.storeErrors;
    const record: RequestRecord = {
      number: this.#records.length + 1,
      phase,
      engine,
      conversation,
      turn,
      promptTokens: tokens.length,
      cachedTokens: reply.cachedTokens,
      computedTokens: reply.computedTokens,
      ttftMs: reply.timeToFirstTokenMs,
      ttftReferenceMs: cold.timeToFirstTokenMs,
      probabilitiesCompared: compared,
      probabilitiesDiffering: differing,
      note: error ?? (reply.proof === "passed" ? "proved its incarnation, cold once" : ""),
    };
    this.#records.push(record);
    this.#say(tableRow(record));
    this.#spoken.set(conversation, { tokens: [...tokens, ...reply.tokens], turn });
    return record;
  }

  /** Waits until a counter has moved and stands still; its value. */
  async #settled(daemon: DaemonProcess, name: string): Promise<number> {
    const until = performance.now() + SETTLE_MS;
    let before = -1;
    for (;;) {
      const value = await daemon.metric(name);
      if (value > 0 && value === before) return value;
      if (performance.now() > until)
        throw new CairnError("unavailable", `${name} stays ${value}:\n${daemon.logTail()}`);
      before = value;
      await sleep(5 * POLL_MS);
    }
  }

  /** For an interrupt: at once, nothing awaited. */
  abandon(): void {
    for (const engine of this.#engines.values()) engine.kill();
    this.#reference?.kill();
    for (const { daemon } of this.#nodes) daemon.kill();
    rmSync(this.#directory, { recursive: true, force: true });
  }

  async close(): Promise<void> {
    const engines = [...this.#engines.values()];
    if (this.#reference !== undefined) engines.push(this.#reference);
    await Promise.all(engines.map((engine) => engine.stop()));
    await Promise.all(this.#nodes.map(({ daemon }) => daemon.stop()));
    rmSync(this.#directory, { recursive: true, force: true });
  }
}

/** The closing lines. */
export function lowerSummary(result: LowerResult): string {
  const mib = (bytes: number): string => `${(bytes / MIB).toFixed(1)} MiB`;
  return [
    "",
    `  from NVMe            ${mib(result.nvmeBytes)} read back, ${result.tokensCachedFromNvme} prompt tokens restored`,
    `  from the directory   ${result.blocksFetched} blocks fetched of ${result.chunksShared} chunks, ` +
      `${result.tokensCachedFromShared} prompt tokens restored on node 2`,
    `  probabilities        ${result.probabilitiesCompared} compared bit for bit, ${result.probabilitiesDiffering} differ`,
    `  took                 ${result.seconds.toFixed(1)} s`,
    "",
    result.ok ? "All as promised." : result.problems.map((one) => `PROBLEM: ${one}`).join("\n"),
  ].join("\n");
}
