/** The routes and their schemas. Each handler reads shared memory, or asks the main thread one question. */
import type { FastifyInstance } from "fastify";
import { Type } from "typebox";
import { ConfigSchema } from "../config/schema.ts";
import { CairnError } from "../errors.ts";
import { LIMITS } from "../limits.ts";
import type { EdgeServices } from "./app.ts";
import type { LocatedBlock, NodeSnapshot } from "./contract.ts";

/** Answers to questions about the whole node are reused this long, however many clients ask. */
const SNAPSHOT_MS = 250;

/** HttpErrorBody (replies.ts, which the main thread loads and which therefore does without typebox). */
const ErrorBodySchema = Type.Object(
  {
    code: Type.Integer(),
    name: Type.String(),
    retryable: Type.Boolean(),
    message: Type.String(),
    action: Type.String(),
    detail: Type.Number(),
    problems: Type.Optional(
      Type.Array(
        Type.Object({ path: Type.String(), source: Type.String(), message: Type.String() }),
      ),
    ),
  },
  { description: "A row of docs/errors.md." },
);

const KeySchema = Type.String({
  pattern: "^(?:[0-9a-fA-F]{8}){2,8}$",
  description: "Block key in hex: the whole key, or its last 8 bytes as engines publish them.",
});
const AnyObject = Type.Object({}, { additionalProperties: true });
const LocateBody = Type.Object(
  { keys: Type.Array(KeySchema, { minItems: 1, maxItems: LIMITS.locateKeysMax }) },
  { additionalProperties: false },
);
const NoQuery = Type.Object({}, { additionalProperties: false });

interface RouteWords {
  readonly summary: string;
  readonly answer?: unknown;
}

function words({ summary, answer = AnyObject }: RouteWords) {
  const response = { 200: answer, "4xx": ErrorBodySchema, "5xx": ErrorBodySchema };
  return { summary, querystring: NoQuery, response };
}

/** One question for all who ask within SNAPSHOT_MS. */
function snapshotOf({ ask, now }: EdgeServices): () => Promise<NodeSnapshot> {
  let cached: Promise<NodeSnapshot> | undefined;
  let cachedMs = 0;
  return () => {
    if (cached !== undefined && now() - cachedMs < SNAPSHOT_MS) return cached;
    cachedMs = now();
    const asked = ask({ kind: "snapshot" });
    cached = asked;
    // A refusal is told to those who wait for it and to nobody after them.
    asked.catch(() => {
      if (cached === asked) cached = undefined;
    });
    return asked;
  };
}

function probes(app: FastifyInstance, { ask, feed, metrics }: EdgeServices): void {
  app.get(
    "/healthz",
    { schema: words({ summary: "Alive: the ledger's thread answers." }) },
    async () => {
      await ask({ kind: "ping" });
      return { alive: true };
    },
  );
  app.get("/readyz", { schema: words({ summary: "Ready: engines are served." }) }, async () => {
    if (feed.value("ready") !== 1)
      throw new CairnError("tierUnavailable", "the daemon is starting or draining");
    return { ready: true };
  });
  const text = Type.String({ description: "Prometheus text format." });
  const schema = words({ summary: "Metrics for Prometheus.", answer: text });
  app.get("/metrics", { schema }, async (_request, reply) => {
    const { registry } = metrics;
    return reply
      .type(registry.contentType)
      .serializer(String)
      .send(await registry.metrics());
  });
}

function node(app: FastifyInstance, services: EdgeServices): void {
  const snapshot = snapshotOf(services);
  const { info, digests, now } = services;
  app.get(
    "/v1/tiers",
    { schema: words({ summary: "Tiers, disks, the remote store, and the links between them." }) },
    async () => {
      const { tiers, devices, remote, links } = await snapshot();
      return { node: info.node, tiers, devices, remote, links };
    },
  );
  const summary = "Totals, rates of the last seconds, latencies, instances.";
  app.get("/v1/stats", { schema: words({ summary }) }, async () => {
    const { instances } = await snapshot();
    const uptimeSeconds = Math.max(0, (now() - info.startedMs) / 1_000);
    return { ...info, uptimeSeconds, ...digests.now(now()), instances };
  });
  const descriptors = words({ summary: "Namespaces with their descriptors." });
  app.get("/v1/namespaces", { schema: descriptors }, async () => {
    const { namespaces } = await snapshot();
    return { namespaces };
  });
}

function located(key: string, blocks: readonly LocatedBlock[], nodeName: string) {
  const places = blocks.map((block) => ({ ...block, node: nodeName }));
  return { key, found: places.length > 0, ambiguous: places.length > 1, blocks: places };
}

function blocks(app: FastifyInstance, { reader, info, ask }: EdgeServices): void {
  const locate = {
    ...words({
      summary: "Where blocks are: tier and node of each key; ambiguous short keys are listed.",
    }),
    body: LocateBody,
  };
  app.post<{ Body: { readonly keys: readonly string[] } }>(
    "/v1/blocks/locate",
    { schema: locate },
    async (request) => {
      if (reader === undefined) throw new CairnError("tierUnavailable", "no ledger is attached");
      const results = request.body.keys.map((key) =>
        located(key, reader.locate(Buffer.from(key, "hex")), info.node),
      );
      const ambiguous = results.filter((result) => result.ambiguous).map(({ key }) => key);
      return { node: info.node, epoch: info.epoch, results, ambiguous };
    },
  );
  const explain = {
    ...words({
      summary: "Everything the ledger knows of one key, and why it is or is not readable.",
    }),
    params: Type.Object({ key: KeySchema }, { additionalProperties: false }),
  };
  app.get<{ Params: { readonly key: string } }>(
    "/v1/blocks/explain/:key",
    { schema: explain },
    async (request) => {
      const key = Buffer.from(request.params.key, "hex");
      return { node: info.node, blocks: await ask({ kind: "explain", key: new Uint8Array(key) }) };
    },
  );
}

function configuration(app: FastifyInstance, { ask }: EdgeServices): void {
  const read = words({ summary: "The configuration in force.", answer: ConfigSchema });
  app.get("/v1/config", { schema: read }, async () => ask({ kind: "config" }));
  const write = {
    ...words({
      summary:
        "Changes the configuration: fields of the body are laid over the running ones, the result is " +
        "validated whole and applied whole. A field that needs a restart refuses all of it (restartNeeded).",
    }),
    body: Type.Object({}, { additionalProperties: true, minProperties: 1 }),
  };
  app.put("/v1/config", { schema: write }, async (request) =>
    ask({ kind: "configPut", document: request.body }),
  );
}

function stream(app: FastifyInstance, { events }: EdgeServices): void {
  const summary = "Server-sent events: history, digest, blocks, notice. Slow readers are cut off.";
  const schema = words({ summary, answer: Type.String() });
  app.get("/v1/events", { schema }, (_request, reply) => {
    events.admit();
    const headers = reply.getHeaders() as Record<string, string>;
    reply.hijack();
    reply.raw.writeHead(200, {
      ...headers,
      "content-type": "text/event-stream; charset=utf-8",
      "x-accel-buffering": "no",
    });
    events.join(reply.raw);
  });
}

export function registerRoutes(app: FastifyInstance, services: EdgeServices): void {
  probes(app, services);
  node(app, services);
  blocks(app, services);
  configuration(app, services);
  stream(app, services);
  app.get("/openapi.json", { schema: { hide: true } }, async () => app.swagger());
}
