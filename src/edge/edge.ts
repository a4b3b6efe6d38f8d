/**
 * The edge as the daemon sees it: start it, hear its address, hand it notices, stop it. Everything that
 * HTTP needs runs in the worker (worker.ts); this file answers its questions one message at a time.
 */
import { readFileSync, statSync } from "node:fs";
import { Worker } from "node:worker_threads";
import { entryUrl } from "../bundle/place.ts";
import type { Config } from "../config/schema.ts";
import { CairnError } from "../errors.ts";
import type {
  EdgeAnswers,
  EdgeHandler,
  EdgeKind,
  EdgeLedger,
  EdgeRequest,
  EdgeSecrets,
  EdgeWorkerData,
  NodeInfo,
  Notice,
  ToMain,
  ToWorker,
} from "./contract.ts";
import { replyOf, ReplyError } from "./replies.ts";

const TOKEN_BYTES_MIN = 16;
const TOKEN_BYTES_MAX = 4_096;
const STOP_MS = 3_000;
/** Notices beyond this many a second are dropped: a fault storm must not become a message storm. */
const NOTICES_PER_SECOND = 20;

export interface EdgeOptions {
  readonly config: Config["edge"];
  readonly feed: SharedArrayBuffer;
  /** `{ view: ledger.share(), keyWords: namespaceTable(…) }`; null: no locate, no block events. */
  readonly ledger: EdgeLedger | null;
  readonly info: NodeInfo;
  readonly handler: EdgeHandler;
  /** Called when the worker dies by itself; the daemon decides (serving engines goes on). */
  readonly onFailure?: (error: CairnError) => void;
}

export interface EdgeHandle {
  /** Where it listens: `127.0.0.1:7411` or `unix:/path`. */
  readonly address: string;
  notice(notice: Notice): void;
  /** Names the directories behind the device numbers of the feed; again whenever they change. */
  devices(directories: readonly string[]): void;
  /** Ends connections and the thread; idempotent. */
  stop(): Promise<void>;
}

function readSecretFile(path: string, field: string): string {
  try {
    const { mode } = statSync(path);
    if ((mode & 0o077) !== 0)
      throw new CairnError("directoryUnsafe", `${field}: ${path} is open to others; chmod 600`);
    return readFileSync(path, "utf8");
  } catch (error) {
    if (error instanceof CairnError) throw error;
    throw new CairnError("configInvalid", `${field}: ${String(error)}`);
  }
}

function readPublicFile(path: string, field: string): string {
  try {
    return readFileSync(path, "utf8");
  } catch (error) {
    throw new CairnError("configInvalid", `${field}: ${String(error)}`);
  }
}

/** Reads token and TLS files. throws configInvalid, directoryUnsafe. */
export function readSecrets(config: Config["edge"]): EdgeSecrets {
  const secrets: { token?: string; tls?: NonNullable<EdgeSecrets["tls"]> } = {};
  if (config.tokenFile !== undefined) {
    const token = readSecretFile(config.tokenFile, "edge.tokenFile").split("\n")[0]!.trim();
    if (token.length < TOKEN_BYTES_MIN || token.length > TOKEN_BYTES_MAX || /\s/.test(token))
      throw new CairnError(
        "configInvalid",
        `edge.tokenFile: the first line must be a token of ${TOKEN_BYTES_MIN} to ${TOKEN_BYTES_MAX} characters`,
      );
    secrets.token = token;
  }
  if (config.tls !== undefined) {
    const { certFile, keyFile, clientCaFile } = config.tls;
    const cert = readPublicFile(certFile, "edge.tls.certFile");
    const key = readSecretFile(keyFile, "edge.tls.keyFile");
    secrets.tls =
      clientCaFile === undefined
        ? { cert, key }
        : { cert, key, clientCa: readPublicFile(clientCaFile, "edge.tls.clientCaFile") };
  }
  return secrets;
}

async function answer(handler: EdgeHandler, request: EdgeRequest): Promise<EdgeAnswers[EdgeKind]> {
  switch (request.kind) {
    case "ping":
      return true;
    case "snapshot":
      return handler.snapshot();
    case "config":
      return handler.config();
    case "configPut":
      return handler.configPut(request.document);
    case "explain":
      return handler.explain(request.key);
  }
}

function serveQuestions(worker: Worker, handler: EdgeHandler): (message: ToMain) => void {
  const post = (message: ToWorker): void => worker.postMessage(message);
  return (message) => {
    if (message.type !== "ask") return;
    const { id, request } = message;
    answer(handler, request).then(
      (value) => post({ type: "answer", id, value }),
      (error: unknown) => post({ type: "refusal", id, error: replyOf(error) }),
    );
  };
}

/** Resolves with the address once it listens; rejects with why it cannot. */
function listening(worker: Worker): Promise<string> {
  return new Promise((resolve, reject) => {
    worker.on("message", (message: ToMain) => {
      if (message.type === "listening") resolve(message.address);
      if (message.type === "failed") reject(new ReplyError(message.error));
    });
    worker.once("error", reject);
    worker.once("exit", (code) =>
      reject(new CairnError("internal", `the edge ended with ${code}`)),
    );
  });
}

function noticeGate(now: () => number): () => boolean {
  let second = 0;
  let passed = 0;
  return () => {
    const current = Math.floor(now() / 1_000);
    if (current !== second) passed = 0;
    second = current;
    passed += 1;
    return passed <= NOTICES_PER_SECOND;
  };
}

/** Starts the worker and waits until it listens. throws configInvalid, directoryUnsafe, directoryLocked. */
export async function startEdge(options: EdgeOptions): Promise<EdgeHandle> {
  const { config, feed, ledger, info, handler } = options;
  const secrets = readSecrets(config);
  const data: EdgeWorkerData = { feed, ledger, info, listen: config.listen, secrets };
  const worker = new Worker(new URL("./bootstrap.mjs", import.meta.url), {
    argv: [entryUrl("src/edge/worker.ts").href],
    workerData: data,
  });
  worker.on("message", serveQuestions(worker, handler));
  const ended = new Promise<void>((resolve) => worker.once("exit", () => resolve()));
  const address = await listening(worker);
  let stopping = false;
  worker.on("error", (error) => {
    if (!stopping) options.onFailure?.(new CairnError("internal", `the edge failed: ${error}`));
  });
  const gate = noticeGate(Date.now);
  return {
    address,
    notice(notice) {
      if (stopping || !gate()) return;
      worker.postMessage({ type: "notice", atMs: Date.now(), notice } satisfies ToWorker);
    },
    devices(directories) {
      if (!stopping) worker.postMessage({ type: "devices", directories } satisfies ToWorker);
    },
    async stop() {
      if (!stopping) {
        stopping = true;
        worker.postMessage({ type: "stop" } satisfies ToWorker);
        const timer = setTimeout(() => void worker.terminate(), STOP_MS);
        void ended.then(() => clearTimeout(timer));
      }
      await ended;
    },
  };
}
