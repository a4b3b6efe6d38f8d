import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { stringify } from "yaml";
import {
  defaultConfig,
  defaultEngineSocket,
  ledgerBlocks,
  nvmeDirectories,
  remoteSealed,
} from "../../src/config/defaults.ts";
import { FIELDS } from "../../src/config/fields.ts";
import { parseListen } from "../../src/config/listen.ts";
import {
  ConfigError,
  type ConfigSources,
  loadConfig,
  readEnvironment,
  readYaml,
} from "../../src/config/load.ts";
import { editDistance, nearest } from "../../src/config/nearest.ts";
import { PROOFS } from "../../src/config/proofs.ts";
import { configReference, errorReference } from "../../src/config/reference.ts";
import { diffConfig, liveOnly, overlayConfig } from "../../src/config/reload.ts";
import { parseBytes, parseMilliseconds, parseMode } from "../../src/config/units.ts";

const directory = mkdtempSync(join(tmpdir(), "cairn-config-"));
const file = join(directory, "cairn.yaml");

beforeAll(() => writeFileSync(file, ""));
afterAll(() => rmSync(directory, { recursive: true }));

function load(from: ConfigSources = {}) {
  return loadConfig({ file, env: {}, ...from });
}

function problemsOf(from: ConfigSources) {
  try {
    load(from);
  } catch (error) {
    if (error instanceof ConfigError) return error.problems;
    throw error;
  }
  return [];
}

function withFile(text: string, from: ConfigSources = {}): ConfigSources {
  writeFileSync(file, text);
  return from;
}

describe("units", () => {
  test("sizes, durations and modes are read as people write them", () => {
    expect(parseBytes("64GiB")).toBe(64 * 2 ** 30);
    expect(parseBytes("1.5 TB")).toBe(1.5e12);
    expect(parseBytes("4096")).toBe(4_096);
    expect(parseMilliseconds("2s")).toBe(2_000);
    expect(parseMilliseconds("1.5m")).toBe(90_000);
    expect(parseMilliseconds("500ms")).toBe(500);
    expect(parseMilliseconds("30d")).toBe(30 * 86_400_000);
    expect(parseMode("0660")).toBe(0o660);
    expect(parseMode("0o660")).toBe(0o660);
  });

  test("what is no size, duration or mode is not guessed at", () => {
    for (const text of ["", "GiB", "64 gigs", "-1", "1e9", "0.3B", "64GiB!", "NaN"])
      expect(parseBytes(text), text).toBeUndefined();
    for (const text of ["2 weeks", "1.0001ms", "s"])
      expect(parseMilliseconds(text), text).toBeUndefined();
    for (const text of ["0o888", "8", "rw"]) expect(parseMode(text), text).toBeUndefined();
  });

  test("the edit distance is that of its definition, within the limit", () => {
    const distance = (left: string, right: string): number => {
      if (left === "" || right === "") return Math.max(left.length, right.length);
      const swap =
        left.length > 1 &&
        right.length > 1 &&
        left.at(-1) === right.at(-2) &&
        left.at(-2) === right.at(-1)
          ? distance(left.slice(0, -2), right.slice(0, -2)) + 1
          : Number.POSITIVE_INFINITY;
      return Math.min(
        swap,
        distance(left.slice(0, -1), right) + 1,
        distance(left, right.slice(0, -1)) + 1,
        distance(left.slice(0, -1), right.slice(0, -1)) + (left.at(-1) === right.at(-1) ? 0 : 1),
      );
    };
    const word = fc.string({ unit: fc.constantFrom("a", "b", "c"), maxLength: 5 });
    fc.assert(
      fc.property(word, word, (left, right) => {
        expect(editDistance(left, right, 2)).toBe(Math.min(3, distance(left, right)));
      }),
      { numRuns: 300 },
    );
  });

  test("a word far from every name suggests nothing", () => {
    expect(nearest("zzzzzz", ["dram", "edge"])).toBeUndefined();
    expect(nearest("capcityBytes", ["directory", "capacityBytes"])).toBe("capacityBytes");
  });
});

describe("loading", () => {
  test("an empty file gives the defaults, with the host's values filled in", () => {
    withFile("");
    const { config } = load();
    expect(config.engineApi.heartbeatMs).toBe(2_000);
    expect(config.dram.capacityBytes).toBe("auto");
    expect(config.node.name).not.toBe("");
    expect(config.engineApi.socket).toMatch(/^\/tmp\/cairn-\d+\/engine\.sock$/);
    expect(config.dram.directory).toMatch(/^\/dev\/shm\/cairn-\d+$/);
  });

  test("the engine socket stands in XDG_RUNTIME_DIR where there is one", () => {
    const host = { hostname: "h", uid: 7, runtimeDirectory: "/run/user/7" };
    expect(defaultEngineSocket(host)).toBe("/run/user/7/cairn/engine.sock");
    expect(defaultEngineSocket({ ...host, runtimeDirectory: "" })).toBe("/tmp/cairn-7/engine.sock");
  });

  test("flags win over the environment, the environment over the file, the file over the default", () => {
    withFile(
      "dram: {capacityBytes: 1GiB, copyThreads: 3, populateThreads: 2}\nlog: {level: warn}\n",
    );
    const env = { CAIRN_DRAM_CAPACITY_BYTES: "2GiB", CAIRN_DRAM_COPY_THREADS: "4" };
    const flags = { "dram.capacityBytes": "3GiB" };
    const { config, sources } = load({ env, flags });
    expect(config.dram.capacityBytes).toBe(3 * 2 ** 30);
    expect(config.dram.copyThreads).toBe(4);
    expect(config.dram.populateThreads).toBe(2);
    expect(config.dram.slabBytes).toBe(64 * 2 ** 20);
    expect(sources.get("dram.capacityBytes")).toBe("--dram.capacityBytes");
    expect(sources.get("dram.copyThreads")).toBe("CAIRN_DRAM_COPY_THREADS");
    expect(sources.get("log.level")).toBe(`${file}:2`);
    expect(sources.has("dram.slabBytes")).toBe(false);
  });

  test("every field can be set in the file, by environment and by flag, to the same value", () => {
    withFile("");
    const base = load().config;
    for (const { path, environment, schema, optional } of FIELDS) {
      if (optional) continue;
      const value = path
        .split(".")
        .reduce<unknown>((at, key) => (at as Record<string, unknown>)[key], base);
      const text = typeof value === "string" ? value : JSON.stringify(value);
      const wide = schema.unit === "mode" ? "0660" : text;
      expect(load({ env: { [environment]: wide } }).config, environment).toEqual(base);
      expect(load({ flags: { [path]: wide } }).config, path).toEqual(base);
    }
    writeFileSync(file, stringify(base));
    expect(load().config).toEqual(base);
  });

  test("unknown keys, variables and flags are refused with the nearest valid name, all at once", () => {
    withFile("dram:\n  capacityByte: 1\ntenants: [{nam: x}]\nedgee: {}\n");
    const env = { CAIRN_DRAM_CAPACITY: "1GiB" };
    const found = problemsOf({ env, flags: { "dram.capacity": "1" } });
    const words = found.map(({ path, source, message }) => `${path}|${source}|${message}`);
    expect(words).toContain(
      `dram.capacityByte|${file}:2|unknown key; did you mean "capacityBytes"?`,
    );
    expect(words).toContain(`tenants.0.nam|${file}:3|unknown key; did you mean "name"?`);
    expect(words).toContain(`edgee|${file}:4|unknown key; did you mean "edge"?`);
    expect(words).toContain(
      'CAIRN_DRAM_CAPACITY|environment|unknown variable; did you mean "CAIRN_DRAM_CAPACITY_BYTES"?',
    );
    expect(words).toContain(
      'dram.capacity|--dram.capacity|unknown flag; did you mean "dram.capacityBytes"?',
    );
    expect(found).toHaveLength(5);
  });

  test("a name that is misspelt and cut short at once is still told its nearest", () => {
    const names = FIELDS.map(({ environment }) => environment);
    const meant = (name: string): string =>
      readEnvironment({ [name]: "1" }).problems.map(({ message }) => message)[0] ?? "";
    for (const [written, wanted] of [
      ["CAIRN_DRAM_CAPCITY", "CAIRN_DRAM_CAPACITY_BYTES"],
      ["CAIRN_EDGE_LISEN", "CAIRN_EDGE_LISTEN"],
      ["CAIRN_DRAM_SLAP", "CAIRN_DRAM_SLAB_BYTES"],
      ["CAIRN_LEDGR_NAMESPACES_PER_TENANT", "CAIRN_LEDGER_NAMESPACES_PER_TENANT_MAX"],
    ] as const) {
      expect(names).toContain(wanted);
      expect(meant(written), written).toBe(`unknown variable; did you mean "${wanted}"?`);
    }
    expect(meant("CAIRN_QQQQ_ZZZZ")).toBe("unknown variable");
    expect(nearest("capcity", ["directory", "capacityBytes"])).toBe("capacityBytes");
    expect(nearest("dram.capcity", ["edge.listen", "dram.capacityBytes"])).toBe(
      "dram.capacityBytes",
    );
    expect(nearest("slab", ["slabBytes", "slap"])).toBe("slabBytes");
  });

  test("the variables that Kubernetes makes of a service called cairn are not ours", () => {
    const env = {
      CAIRN_SERVICE_HOST: "10.0.0.1",
      CAIRN_EDGE_SERVICE_PORT_HTTP: "7411",
      CAIRN_PORT: "tcp://10.0.0.1:7411",
      CAIRN_EDGE_PORT_7411_TCP_ADDR: "10.0.0.1",
      CAIRN_ADDON: "/x.node",
    };
    expect(readEnvironment(env).problems).toEqual([]);
  });

  test("the variables of clients and of the check run are not settings", () => {
    const env = {
      CAIRN_SOCKET: "/run/cairn/engine.sock",
      CAIRN_ENGINES_CACHE: "/c",
      CAIRN_S3_CACHE: "/c",
      CAIRN_PYTHON_CACHE: "/c",
    };
    expect(readEnvironment(env).problems).toEqual([]);
  });

  test("values of a wrong type or out of range name the field, its source and what was expected", () => {
    withFile(
      "dram:\n  slabBytes: 64 gigs\n  keepOnStop: yes please\n  copyThreads: 1.5\n  highWatermark: 2\n",
    );
    const words = problemsOf({}).map(({ path, source, message }) => `${path} ${source} ${message}`);
    expect(words).toEqual([
      `dram.slabBytes ${file}:2 expected a size such as 64GiB, got "64 gigs"`,
      `dram.keepOnStop ${file}:3 expected a value of type boolean, got "yes please"`,
      `dram.copyThreads ${file}:4 expected a whole number, got 1.5`,
      `dram.highWatermark ${file}:5 expected at most 1, got 2`,
    ]);
  });

  test("broken YAML, duplicate keys, a list for a section and a missing file are one-line problems", () => {
    for (const text of [
      "dram: [",
      "log: {level: info}\nlog: {level: warn}\n",
      "- a\n",
      "dram: 3\n",
    ]) {
      const { problems } = readYaml(text, "c.yaml");
      expect(problems.length, text).toBeGreaterThan(0);
      for (const { message } of problems) expect(message).not.toContain("\n");
    }
    expect(problemsOf({ file: join(directory, "none.yaml") })[0]?.message).toMatch(
      /cannot be read/,
    );
    // A device or a pipe may have no end, and nobody may ever write to it.
    expect(problemsOf({ file: "/dev/zero" })[0]?.message).toBe("is no regular file");
    expect(readYaml("x".repeat(1_048_577), "c").problems[0]?.message).toBe("longer than 1 MiB");
  });

  test("no YAML text whatever makes the reader throw or reach a prototype", () => {
    const keys = fc.constantFrom("dram", "edge", "tenants", "__proto__", "constructor", "a.b", "");
    const tree = fc.letrec((tie) => ({
      node: fc.oneof(
        { maxDepth: 3 },
        fc.string({ maxLength: 8 }),
        fc.double(),
        fc.constant(null),
        fc.array(tie("node"), { maxLength: 3 }),
        fc.dictionary(keys, tie("node"), { maxKeys: 4 }),
      ),
    })).node;
    fc.assert(
      fc.property(
        fc.oneof(
          tree.map((value) => stringify(value)),
          fc.string(),
        ),
        (text) => {
          readYaml(text, "c.yaml");
          expect(Object.keys(Object.prototype)).toEqual([]);
        },
      ),
      { numRuns: 500 },
    );
  });
});

test("no configuration asks for more namespaces than the pool's table has rows", () => {
  writeFileSync(file, "");
  const source = readFileSync(new URL("../../addon/arena.h", import.meta.url), "utf8");
  const rows = Number(/kNamespacesMax = (\d+);/.exec(source)?.[1]);
  expect(load({ flags: { "ledger.namespacesMax": String(rows) } }).config.ledger).toMatchObject({
    namespacesMax: rows,
  });
  expect(problemsOf({ flags: { "ledger.namespacesMax": String(rows + 1) } })).toHaveLength(1);
});

describe("proofs between fields", () => {
  const broken: Readonly<Record<string, Readonly<Record<string, string>>>> = {
    "dram.lowWatermark": { "dram.lowWatermark": "0.99", "dram.highWatermark": "0.9" },
    "dram.capacityBytes": { "dram.capacityBytes": "1MiB" },
    "dram.slabBytes": { "dram.slabBytes": "1000001" },
    "dram.directory": { "dram.directory": "pool" },
    "ledger.blocksMax": { "ledger.blocksMax": "10", "dram.blocksMax": "20" },
    "engineApi.heartbeatMisses": { "engineApi.heartbeatMisses": "1" },
    "engineApi.heartbeatMs": { "engineApi.heartbeatMs": "1h" },
    "engineApi.pinnedBytesMax": {
      "engineApi.pinnedBytesMax": "2GiB",
      "dram.capacityBytes": "1GiB",
    },
    "edge.listen": { "edge.listen": "0.0.0.0:7411" },
    "engineApi.socket": {
      "engineApi.socket": "/a/e.sock",
      tenants: "[{name: t, socket: /a/e.sock}]",
      "edge.listen": "unix:/a/edge.sock",
    },
    tenants: {
      tenants: "[{name: t, uids: [1]}, {name: u, uids: [1]}]",
      "edge.listen": "unix:/a/edge.sock",
    },
    "nvme.directories": { "nvme.enabled": "true" },
    "nvme.segmentBytes": { "nvme.segmentBytes": "1048577" },
    "nvme.stagingBytes": { "nvme.stagingBytes": "1052672" },
    "nvme.writeDepth": { "nvme.queueDepth": "4", "nvme.writeDepth": "8" },
    "nvme.lowWatermark": { "nvme.lowWatermark": "0.99", "nvme.highWatermark": "0.9" },
    "remote.sealing": { "remote.keyFile": "/k", "remote.keyCommand": "[/bin/keys]" },
    "remote.keyFile": { "remote.keyFile": "keys" },
    "remote.keyCommand": { "remote.keyCommand": "[keys, --all]" },
    "remote.directory": { "remote.enabled": "true", "remote.kind": "directory" },
    "remote.s3.bucket": { "remote.enabled": "true", "remote.kind": "s3" },
    "remote.s3.prefix": { "remote.s3.prefix": "kv/../x" },
    "remote.s3.region": { "remote.s3.region": "us east" },
    "remote.s3.credentialsFile": { "remote.s3.credentialsFile": "keys" },
    "remote.s3.endpoint": { "remote.s3.endpoint": "s3.example/path" },
    "remote.inFlightBytesMax": { "remote.inFlightBytesMax": "16MiB" },
  };

  const s3Values: readonly (readonly [string, readonly string[], boolean])[] = [
    [
      "endpoint",
      ["http://h:0", "http://:pw@h", "http://u@h", "http://h/#x", "http://h/?x", "ftp://h"],
      false,
    ],
    ["endpoint", ["http://h:9000", "https://h", "http://[::1]:9000/", ""], true],
    ["prefix", ["/x", "../x", "a//b", "a b", "a/./b", ".."], false],
    ["prefix", ["", "a", "a/b", "a/b/", "v1.2_x-y"], true],
    ["bucket", ["a/b", "..", "a b", "a"], false],
    ["bucket", ["kv-1", "Old_Bucket", "arn:aws:s3:eu-west-1:1:accesspoint/kv"], true],
    ["region", ["us east"], false],
    ["credentialsFile", ["keys", "./keys"], false],
  ];
  test.each(s3Values)(
    "remote.s3.%s of %j: %s, a store can be asked with it",
    (field, values, good) => {
      withFile("");
      for (const value of values) {
        const path = `remote.s3.${field}`;
        const read = (): unknown => load({ flags: { [path]: value } });
        if (good) expect(read, value).not.toThrow();
        else expect(problemsOf({ flags: { [path]: value } })[0]?.path, value).toBe(path);
      }
    },
  );

  test.each(PROOFS.map(({ path }) => path))(
    "%s: its proof refuses a configuration that breaks it",
    (path) => {
      withFile("");
      const flags = broken[path];
      expect(flags, `no broken example for ${path}`).toBeDefined();
      const found = problemsOf({ flags: flags ?? {} });
      expect(found.map((problem) => problem.path)).toEqual([path]);
      expect(found[0]?.message).not.toContain("\n");
      expect(found[0]?.source).toMatch(/^(--|default$)/);
    },
  );

  test("with tenants a loopback port needs a token, a Unix socket does not", () => {
    withFile("");
    const tenants = "[{name: t, uids: [1]}]";
    expect(problemsOf({ flags: { tenants } }).map(({ path }) => path)).toEqual(["edge.listen"]);
    expect(load({ flags: { tenants, "edge.tokenFile": "/t" } }).config.tenants).toHaveLength(1);
    const unix = { tenants, "edge.listen": "unix:/a/edge.sock" };
    expect(load({ flags: unix }).config.tenants).toHaveLength(1);
  });

  test("an address off the host is accepted with a token or with client certificates", () => {
    withFile("");
    const off = { "edge.listen": "0.0.0.0:7411" };
    const tls = { "edge.tls.certFile": "/c", "edge.tls.keyFile": "/k" };
    expect(load({ flags: { ...off, "edge.tokenFile": "/t" } }).config.edge.tokenFile).toBe("/t");
    expect(
      load({ flags: { ...off, ...tls, "edge.tls.clientCaFile": "/ca" } }).config.edge.tls,
    ).toBeDefined();
    expect(problemsOf({ flags: { ...off, ...tls } }).map(({ path }) => path)).toEqual([
      "edge.listen",
    ]);
  });

  test("more tenants' mistakes: taken names, nobody to be, relative and over-long sockets", () => {
    withFile("");
    for (const tenants of [
      "[{name: default, uids: [1]}]",
      "[{name: a}]",
      "[{name: a, uids: [1]}, {name: a, uids: [2]}]",
    ]) {
      const flags = { tenants, "edge.listen": "unix:/a/edge.sock" };
      expect(problemsOf({ flags }).map(({ path }) => path)).toEqual(["tenants"]);
    }
    for (const socket of ["rel.sock", `/${"x".repeat(120)}`])
      expect(problemsOf({ flags: { "engineApi.socket": socket } }).map(({ path }) => path)).toEqual(
        ["engineApi.socket"],
      );
  });

  test("every device has a directory of its own, apart from the pool and the shared one", () => {
    const wrong = (flags: Readonly<Record<string, string>>): readonly string[] => {
      withFile("");
      return problemsOf({ flags }).map(({ path }) => path);
    };
    for (const directories of [
      "[{path: disk}]",
      "[{path: /d}, {path: /d}]",
      "[{path: /d}, {path: /d/}]",
      "[{path: /d}, {path: /d/inner}]",
      "[{path: /dev/shm/pool/disk}]",
      "[{path: /d, capacityBytes: 1GiB}]",
    ])
      expect(
        wrong({ "nvme.directories": directories, "dram.directory": "/dev/shm/pool" }),
        directories,
      ).toEqual(["nvme.directories"]);
    expect(wrong({ "nvme.directories": "[{path: /d}, {path: /dd}]" })).toEqual([]);
    expect(wrong({ "nvme.directories": "[{path: /d}]", "remote.directory": "/d/s" })).toEqual([
      "remote.directory",
    ]);
    expect(wrong({ "nvme.directories": "[/d]" })).toEqual(["nvme.directories.0"]);
  });

  test("with tenants the remote tier is sealed, and then needs a source of keys", () => {
    withFile("");
    const remote = { "remote.enabled": "true", "remote.directory": "/d" };
    const tenants = { tenants: "[{name: t, uids: [1]}]", "edge.tokenFile": "/t" };
    const sealed = (flags: Readonly<Record<string, string>>): boolean =>
      remoteSealed(load({ flags: { ...remote, ...flags } }).config);
    expect(sealed({})).toBe(false);
    expect(sealed({ ...tenants, "remote.keyFile": "/k" })).toBe(true);
    expect(sealed({ "remote.sealing": "on", "remote.keyCommand": "[/bin/keys, a]" })).toBe(true);
    expect(sealed({ ...tenants, "remote.sealing": "off" })).toBe(false);
    for (const flags of [tenants, { "remote.sealing": "on" }]) {
      const found = problemsOf({ flags: { ...remote, ...flags } });
      expect(found.map(({ path }) => path)).toEqual(["remote.sealing"]);
    }
  });

  test("a directory's entry is complete where the tier reads it, whatever was left out", () => {
    withFile("nvme: {directories: [{path: /d/}, {path: /e, capacityBytes: 64GiB}]}\n");
    const rest = { writeBudgetBytesPerDay: 0, ratedWriteBytes: 0 };
    expect(nvmeDirectories(load().config.nvme)).toEqual([
      { path: "/d", capacityBytes: "auto", ...rest },
      { path: "/e", capacityBytes: 64 * 2 ** 30, ...rest },
    ]);
  });

  test("the ledger has room for the blocks of both local tiers, and what is set wins", () => {
    withFile("");
    const { config } = load();
    const tebibyte = 2 ** 40;
    expect(ledgerBlocks(config, 0, 0)).toBe(131_072);
    expect(ledgerBlocks(config, 2 ** 30, 0)).toBe(262_144);
    expect(ledgerBlocks(config, 2 ** 30, tebibyte / 2)).toBe(262_144 + 8_388_608);
    expect(ledgerBlocks(config, tebibyte, tebibyte)).toBe(16_777_216);
    const set = load({ flags: { "ledger.blocksMax": "7", "nvme.blocksMax": "9" } }).config;
    expect(ledgerBlocks(set, tebibyte, tebibyte)).toBe(7);
    const both = { "ledger.blocksMax": "7", "nvme.blocksMax": "9", "dram.blocksMax": "1" };
    const on = { ...both, "nvme.enabled": "true", "nvme.directories": "[{path: /d}]" };
    expect(problemsOf({ flags: on }).map(({ path }) => path)).toEqual(["ledger.blocksMax"]);
  });

  test("listen addresses are read, and only loopback ones count as such", () => {
    expect(parseListen("127.0.0.1:0")).toMatchObject({ kind: "tcp", loopback: true });
    expect(parseListen("[::1]:80")).toMatchObject({ host: "::1", loopback: true });
    expect(parseListen("localhost:80")).toMatchObject({ loopback: true });
    expect(parseListen("127.0.0.1.evil.example:80")).toMatchObject({ loopback: false });
    expect(parseListen("10.0.0.1:80")).toMatchObject({ loopback: false });
    expect(parseListen("unix:/a/b")).toEqual({ kind: "unix", path: "/a/b" });
    for (const text of ["", "127.0.0.1", "::1:80", "unix:rel", "a:99999", "http://a:1"])
      expect(parseListen(text), text).toBeUndefined();
  });
});

describe("reload", () => {
  test("a diff tells live fields from those that need a restart", () => {
    withFile("");
    const before = load().config;
    const after = load({
      flags: { "dram.capacityBytes": "1GiB", "log.level": "debug", "dram.slabBytes": "1MiB" },
    }).config;
    const diff = diffConfig(before, after);
    expect(diff.live.map(({ path }) => path)).toEqual(["dram.capacityBytes", "log.level"]);
    expect(diff.restartNeeded).toEqual([
      { path: "dram.slabBytes", before: 64 * 2 ** 20, after: 2 ** 20 },
    ]);
    const applied = liveOnly(before, after);
    expect(applied.dram.slabBytes).toBe(before.dram.slabBytes);
    expect(applied.log.level).toBe("debug");
    expect(diffConfig(before, before)).toEqual({ live: [], restartNeeded: [] });
  });

  test("a rejected overlay leaves the running configuration as it was", () => {
    withFile("");
    const running = load().config;
    const copy = structuredClone(running);
    for (const document of [
      { dram: { lowWatermark: 1 } },
      { dram: { nope: 1 } },
      { dram: { slabBytes: "x" } },
      3,
    ])
      expect(() => overlayConfig(running, document, "test")).toThrow(ConfigError);
    expect(running).toEqual(copy);
    const next = overlayConfig(running, { dram: { capacityBytes: "2GiB" } }, "test");
    expect(next).toEqual({ ...copy, dram: { ...copy.dram, capacityBytes: 2 ** 31 } });
  });

  test("defaults are a fresh copy each time", () => {
    expect(defaultConfig().nvme.directories).not.toBe(defaultConfig().nvme.directories);
  });
});

describe("generated pages", () => {
  test("docs/config.md is what `cairn config reference --write` makes of the schema", () => {
    const page = readFileSync(new URL("../../docs/config.md", import.meta.url), "utf8");
    expect(page).toBe(configReference());
    for (const { path, environment } of FIELDS) {
      expect(page).toContain(`\`${path}\``);
      expect(page).toContain(`\`${environment}\``);
    }
  });

  test("every setting is read by something else than the configuration itself", () => {
    const root = new URL("../../", import.meta.url).pathname;
    const text = ["src", "tiers"]
      .flatMap((folder) =>
        readdirSync(join(root, folder), { recursive: true, encoding: "utf8" }).map((name) =>
          join(folder, name),
        ),
      )
      .filter((path) => path.endsWith(".ts") && !path.startsWith(join("src", "config")))
      .map((path) => readFileSync(join(root, path), "utf8"))
      .join("\n");
    const unread = FIELDS.map(({ path }) => path.split(".").at(-1) ?? "").filter(
      (name) => !new RegExp(`[.{,\\s"]${name}\\b`).test(text),
    );
    expect(unread).toEqual([]);
  });

  test("docs/errors.md is what the error table says", () => {
    const page = readFileSync(new URL("../../docs/errors.md", import.meta.url), "utf8");
    expect(page).toBe(errorReference());
  });
});
