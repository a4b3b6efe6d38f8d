/**
 * Real S3 servers on loopback, for tests and benches: found, started on a free port over a directory of their own,
 * stopped by their process id. .ci/s3-servers builds the two that are not ours.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { accessSync, constants, mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { createServer } from "node:net";
import { homedir, tmpdir } from "node:os";
import { delimiter, join } from "node:path";
import { NODE_FLAGS, ROOT } from "./daemon.ts";
import { type RawTarget, signed, UNSIGNED } from "./raw-http.ts";

export const SERVER_NAMES = ["versitygw", "minio", "fake"] as const;
export type ServerName = (typeof SERVER_NAMES)[number];

/** What brings a server that is not there. */
export const INSTALL: Readonly<Record<ServerName, string>> = {
  versitygw: "go install github.com/versity/versitygw/cmd/versitygw@v1.8.0",
  minio: "go install github.com/minio/minio@v0.0.0-20260212201848-7aac2a2c5b7c",
  fake: "nothing: it is test/harness/fake-s3.ts",
};

const BUCKET = "cairn-test";
const READY_MS_MAX = 30_000;
const STOP_MS_MAX = 5_000;
/** The fake knows no others. */
const KEYS = { accessKeyId: "FAKEACCESSKEY", secretAccessKey: "fake+secret/key" } as const;

export interface S3Server extends RawTarget {
  readonly name: ServerName;
  readonly bucket: string;
  /** Where a server of files keeps them; "" for the fake. */
  readonly directory: string;
  stop(): Promise<void>;
}

/** Path of the program: CAIRN_TEST_<NAME>, PATH, ~/go/bin; undefined without one. */
export function findServer(name: ServerName): string | undefined {
  if (name === "fake") return process.execPath;
  const named = process.env[`CAIRN_TEST_${name.toUpperCase()}`];
  const folders = [...(process.env["PATH"] ?? "").split(delimiter), join(homedir(), "go", "bin")];
  const places = named === undefined ? folders.map((folder) => join(folder, name)) : [named];
  return places.find((place) => {
    try {
      accessSync(place, constants.X_OK);
      return true;
    } catch {
      return false;
    }
  });
}

interface Start {
  readonly words: readonly string[];
  readonly environment: Readonly<Record<string, string>>;
}

function startOf(name: ServerName, port: number, directory: string): Start {
  const address = `127.0.0.1:${port}`;
  const { accessKeyId, secretAccessKey } = KEYS;
  if (name === "fake") {
    const script = join(ROOT, "test/harness/fake-s3.ts");
    return { words: [...NODE_FLAGS, script, `${port}`, BUCKET], environment: {} };
  }
  if (name === "versitygw") {
    const access = ["-a", accessKeyId, "-s", secretAccessKey];
    const sidecar = ["--sidecar", join(directory, "metadata")];
    const words = ["--quiet", "--port", address, ...access, "posix", ...sidecar];
    return { words: [...words, join(directory, "data")], environment: {} };
  }
  return {
    words: ["server", "--quiet", "--address", address, join(directory, "data")],
    environment: {
      MINIO_ROOT_USER: accessKeyId,
      MINIO_ROOT_PASSWORD: secretAccessKey,
      MINIO_BROWSER: "off",
      MINIO_CI_CD: "on",
    },
  };
}

function freePort(): Promise<number> {
  return new Promise((resolve, reject) => {
    const server = createServer();
    server.on("error", reject);
    server.listen(0, "127.0.0.1", () => {
      const address = server.address();
      const port = typeof address === "object" ? (address?.port ?? 0) : 0;
      server.close(() => resolve(port));
    });
  });
}

/** Creates the bucket; false while the server does not answer. */
async function createBucket(target: RawTarget): Promise<boolean> {
  const path = `/${BUCKET}`;
  const headers = signed(target, "PUT", path, {}, UNSIGNED, Date.now());
  try {
    const answer = await fetch(target.endpoint + path, { method: "PUT", headers });
    await answer.arrayBuffer();
    return answer.ok || answer.status === 409;
  } catch {
    return false;
  }
}

/** Starts the server with an empty bucket. Throws when it is absent or does not become ready. */
export async function startServer(name: ServerName): Promise<S3Server> {
  const program = findServer(name);
  if (program === undefined) throw new Error(`${name} is not installed: ${INSTALL[name]}`);
  const directory = mkdtempSync(join(tmpdir(), `cairn-${name}-`));
  mkdirSync(join(directory, "data"));
  mkdirSync(join(directory, "metadata"));
  const port = await freePort();
  const { words, environment } = startOf(name, port, directory);
  const child = spawn(program, words, {
    cwd: ROOT,
    env: { ...process.env, ...environment },
    stdio: ["ignore", "ignore", "pipe"],
  });
  let complaint = "";
  child.stderr.setEncoding("utf8").on("data", (text: string) => {
    complaint = (complaint + text).slice(-2_000);
  });
  const target = { endpoint: `http://127.0.0.1:${port}`, region: "us-east-1", ...KEYS };
  const stop = async (): Promise<void> => {
    await stopChild(child);
    rmSync(directory, { recursive: true, force: true });
  };
  const end = Date.now() + READY_MS_MAX;
  while (!(await createBucket(target))) {
    if (Date.now() > end || child.exitCode !== null) {
      await stop();
      throw new Error(`${name} did not become ready: ${complaint.trim()}`);
    }
    await sleep(50);
  }
  return { ...target, name, bucket: BUCKET, directory: name === "fake" ? "" : directory, stop };
}

function sleep(milliseconds: number): Promise<void> {
  return new Promise((resolve) => {
    setTimeout(resolve, milliseconds);
  });
}

function stopChild(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return Promise.resolve();
  return new Promise((resolve) => {
    const hard = setTimeout(() => child.kill("SIGKILL"), STOP_MS_MAX);
    child.once("exit", () => {
      clearTimeout(hard);
      resolve();
    });
    child.kill("SIGTERM");
  });
}
