/**
 * The HTTP application: access rules, error bodies, OpenAPI, static page. Routes are in routes.ts. It knows
 * nothing of threads; worker.ts gives it what it needs, and tests give it the same things in process.
 */
import { readFileSync } from "node:fs";
import swagger from "@fastify/swagger";
import { fastify, type FastifyInstance, type FastifyReply } from "fastify";
import { assert } from "../assert.ts";
import type { ListenAddress } from "../config/listen.ts";
import { CairnError } from "../errors.ts";
import { LIMITS } from "../limits.ts";
import type { FeedReader } from "../observe/feed.ts";
import { checkAccess } from "./access.ts";
import type { Ask } from "./ask.ts";
import type { EdgeSecrets, LedgerReader, NodeInfo } from "./contract.ts";
import type { Digests } from "./digest.ts";
import type { EventHub } from "./events.ts";
import type { EdgeMetrics } from "./prometheus.ts";
import { bodyOf, faultOf } from "./replies.ts";
import { registerRoutes } from "./routes.ts";

export interface EdgeServices {
  readonly address: ListenAddress;
  readonly secrets: EdgeSecrets;
  readonly info: NodeInfo;
  readonly feed: FeedReader;
  readonly digests: Digests;
  readonly metrics: EdgeMetrics;
  readonly events: EventHub;
  /** Undefined: locate answers tierUnavailable. */
  readonly reader: LedgerReader | undefined;
  readonly ask: Ask;
  readonly now: () => number;
}

const SECURITY_HEADERS = {
  "content-security-policy":
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; " +
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
  "x-content-type-options": "nosniff",
  "referrer-policy": "no-referrer",
  "cross-origin-resource-policy": "same-origin",
  "cache-control": "no-store",
} as const;

const PAGE_FILES = {
  "/": ["index.html", "text/html; charset=utf-8"],
  "/page.css": ["page.css", "text/css; charset=utf-8"],
  "/page.js": ["page.js", "text/javascript; charset=utf-8"],
  "/icon.svg": ["icon.svg", "image/svg+xml"],
} as const;

const CONNECTIONS_MAX = 256;

function createServer({ secrets }: EdgeServices): FastifyInstance {
  const options = {
    bodyLimit: LIMITS.httpBodyBytesMax,
    requestTimeout: 30_000,
    keepAliveTimeout: 10_000,
    connectionTimeout: 0,
    forceCloseConnections: true,
    exposeHeadRoutes: false,
    ajv: {
      customOptions: {
        removeAdditional: false as const,
        coerceTypes: false as const,
        useDefaults: false,
        // Our schemas carry `unit` and `reload`, which Ajv does not know.
        strict: false,
      },
    },
  };
  if (secrets.tls === undefined) return fastify(options);
  const { cert, key, clientCa } = secrets.tls;
  const https = {
    cert,
    key,
    minVersion: "TLSv1.3" as const,
    requestCert: clientCa !== undefined,
    rejectUnauthorized: clientCa !== undefined,
    ...(clientCa === undefined ? {} : { ca: clientCa }),
  };
  return fastify({ ...options, https }) as unknown as FastifyInstance;
}

function sendError(reply: FastifyReply, error: unknown): FastifyReply {
  const fault = faultOf(error);
  const row = new CairnError(fault.name, fault.message).row;
  if (fault.name === "unauthorized")
    void reply.header("www-authenticate", 'Bearer realm="cairn", Basic realm="cairn"');
  return reply.code(row.httpStatus).send(bodyOf(fault));
}

function guard(app: FastifyInstance, services: EdgeServices): void {
  const { secrets, address, metrics } = services;
  const clientCertificates = secrets.tls?.clientCa !== undefined;
  const rules = { address, token: secrets.token, clientCertificates };
  app.addHook("onRequest", async (request, reply) => {
    void reply.headers(SECURITY_HEADERS);
    checkAccess(rules, request.headers);
  });
  app.addHook("onResponse", async (request, reply) => {
    const route = request.routeOptions.url ?? "none";
    metrics.requests.inc({ route, status: String(reply.statusCode) });
  });
  app.setErrorHandler((error, _request, reply) => sendError(reply, error));
  app.setNotFoundHandler((request, reply) => {
    const path = request.url.split("?")[0]!.slice(0, 200);
    return sendError(reply, new CairnError("notFound", `no ${request.method} ${path}`));
  });
  // Answers are plain data of ours; a compiled serialiser would silently drop what a schema forgot.
  app.setSerializerCompiler(() => (value) => JSON.stringify(value));
}

function servePage(app: FastifyInstance): void {
  for (const [url, [file, type]] of Object.entries(PAGE_FILES)) {
    const text = readFileSync(new URL(`../../dashboard/${file}`, import.meta.url), "utf8");
    app.get(url, { schema: { hide: true } }, (_request, reply) => reply.type(type).send(text));
  }
}

/** Builds the application; nothing listens yet. */
export async function buildApp(services: EdgeServices): Promise<FastifyInstance> {
  const { address, secrets } = services;
  const offHost = address.kind === "tcp" && !address.loopback;
  const guarded = secrets.token !== undefined || secrets.tls?.clientCa !== undefined;
  assert(!offHost || guarded, "a listener off the host without credentials");
  const app = createServer(services);
  app.server.maxConnections = CONNECTIONS_MAX;
  guard(app, services);
  await app.register(swagger, {
    openapi: {
      openapi: "3.1.0",
      info: {
        title: "cairn",
        description: "Admin and query API of one node. Errors are rows of docs/errors.md.",
        version: services.info.version,
      },
      components: {
        securitySchemes: { bearer: { type: "http", scheme: "bearer" } },
      },
    },
  });
  registerRoutes(app, services);
  servePage(app);
  await app.ready();
  return app;
}
