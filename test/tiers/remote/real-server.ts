/** Stores over the real S3 servers that `.ci/s3-servers` brings, and what a test says where one is absent. */
import { readFileSync } from "node:fs";
import { expect, test } from "vitest";
import {
  findServer,
  INSTALL,
  type S3Server,
  type ServerName,
  startServer,
} from "../../../bench/s3-servers.ts";
import { S3Store, type S3Options } from "../../../tiers/remote/s3.ts";
import { sealingSuite } from "./sealing-suite.ts";

const required = process.env["CI_FULL"] === "1";

export function storeOf(server: S3Server, options: Partial<S3Options> = {}): S3Store {
  const { accessKeyId, secretAccessKey, bucket, endpoint, region } = server;
  return new S3Store({
    bucket,
    prefix: "",
    region,
    endpoint,
    pathStyle: true,
    credentials: { accessKeyId, secretAccessKey },
    signPayload: false,
    socketsMax: 8,
    idleMs: 20_000,
    ...options,
  });
}

export function absent(name: ServerName): void {
  test(`needs a server that is not here: ${INSTALL[name]} (or .ci/s3-servers) brings it`, () => {
    // With CI_FULL=1 the server must be there; else what the name promises to bring it must be what CI builds.
    expect(required).toBe(false);
    const script = readFileSync(new URL("../../../.ci/s3-servers", import.meta.url), "utf8");
    expect(script).toContain(INSTALL[name].replace("go install ", ""));
  });
}

/** Registers the suite of sealed chunks over this server. One a file: the addon starts once in a process. */
export function sealingOn(name: ServerName): void {
  if (findServer(name) === undefined) {
    absent(name);
    return;
  }
  let server: S3Server | undefined;
  sealingSuite(
    async () => {
      server = await startServer(name);
      return { store: storeOf(server), another: storeOf(server) };
    },
    async () => server?.stop(),
  );
}
