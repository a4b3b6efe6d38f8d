/** Options of other programs: the tables, what each option becomes, and the page that `cairn config migrate` prints. */
import { readFileSync } from "node:fs";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { parse as parseYaml, stringify } from "yaml";
import { fieldOf } from "../../src/config/fields.ts";
import { ConfigError, proveInherited, readYaml } from "../../src/config/load.ts";
import { KVBM_OPTIONS, kvbmGiven, readKvbm } from "../../src/config/migrate/kvbm.ts";
import { LMCACHE_OPTIONS, LMCACHE_VARIABLES } from "../../src/config/migrate/lmcache-options.ts";
import {
  LMCACHE_SERVER_OPTIONS,
  readServer,
  serverGiven,
} from "../../src/config/migrate/lmcache-server.ts";
import {
  lmcacheFileGiven,
  lmcacheVariablesGiven,
  readLmcache,
} from "../../src/config/migrate/lmcache.ts";
import type { ForeignOption, Given, Reading } from "../../src/config/migrate/options.ts";
import { migrate } from "../../src/config/migrate/page.ts";
import { migrationReference } from "../../src/config/migrate/reference.ts";

type Example = readonly [given: Readonly<Record<string, unknown>>, becomes: Settings];
type Settings = Readonly<Record<string, unknown>>;

const settingsOf = ({ groups }: Reading): Settings =>
  Object.fromEntries(
    groups.flatMap(({ settings }) => settings.map(({ path, value }) => [path, value])),
  );

const given = (options: Readonly<Record<string, unknown>>): Given[] =>
  Object.entries(options).map(([name, value]) => ({ name, value, source: name }));

const kvbm = (env: Readonly<Record<string, string>>) => readKvbm(kvbmGiven(env));
const server = (...words: string[]) => readServer(serverGiven(words));
const refusal = ({ notes }: Reading): string =>
  notes.flatMap(({ fate, text }) => (fate === "refused" ? [text] : [])).join("; ");

const DISK = {
  "nvme.enabled": true,
  "nvme.directories": [{ path: "/d/cairn", capacityBytes: "8GB" }],
};
const S3 = { "remote.enabled": true, "remote.kind": "s3", "remote.s3.bucket": "kv-1" };
const SHARED = {
  "remote.enabled": true,
  "remote.kind": "directory",
  "remote.directory": "/mnt/kv/cairn",
};
const KVBM_S3 = { DYN_KVBM_OBJECT_ENABLED: "1", DYN_KVBM_OBJECT_BUCKET: "kv-1" };

/** One example of each option that becomes a setting, by the option's name in its table. */
const KVBM_EXAMPLES: Readonly<Record<string, Example>> = {
  DYN_KVBM_CPU_CACHE_GB: [{ DYN_KVBM_CPU_CACHE_GB: "100" }, { "dram.capacityBytes": "100GB" }],
  DYN_KVBM_DISK_CACHE_GB: [{ DYN_KVBM_DISK_CACHE_GB: "8", DYN_KVBM_DISK_CACHE_DIR: "/d" }, DISK],
  DYN_KVBM_DISK_CACHE_DIR: [
    { DYN_KVBM_DISK_CACHE_DIR: "/d/", DYN_KVBM_DISK_CACHE_GB: "8.0" },
    DISK,
  ],
  DYN_KVBM_DISK_DISABLE_O_DIRECT: [
    { DYN_KVBM_DISK_DISABLE_O_DIRECT: "true" },
    { "nvme.direct": "off" },
  ],
  DYN_KVBM_OBJECT_ENABLED: [KVBM_S3, { ...S3, "remote.s3.prefix": "cairn" }],
  DYN_KVBM_OBJECT_BUCKET: [
    { ...KVBM_S3, DYN_KVBM_OBJECT_BUCKET: "other" },
    { ...S3, "remote.s3.bucket": "other", "remote.s3.prefix": "cairn" },
  ],
  DYN_KVBM_OBJECT_ENDPOINT: [
    { ...KVBM_S3, DYN_KVBM_OBJECT_ENDPOINT: "http://minio:9000/" },
    {
      ...S3,
      "remote.s3.prefix": "cairn",
      "remote.s3.endpoint": "http://minio:9000",
      "remote.s3.pathStyle": true,
    },
  ],
  DYN_KVBM_OBJECT_REGION: [
    { ...KVBM_S3, DYN_KVBM_OBJECT_REGION: "eu-west-1" },
    { ...S3, "remote.s3.prefix": "cairn", "remote.s3.region": "eu-west-1" },
  ],
};

const LMCACHE_EXAMPLES: Readonly<Record<string, Example>> = {
  max_local_cpu_size: [{ max_local_cpu_size: 5 }, { "dram.capacityBytes": "5GiB" }],
  local_disk: [
    { local_disk: "file:///a/,file:///b", max_local_disk_size: 10 },
    {
      "nvme.enabled": true,
      "nvme.directories": [
        { path: "/a/cairn", capacityBytes: "5GiB" },
        { path: "/b/cairn", capacityBytes: "5GiB" },
      ],
    },
  ],
  max_local_disk_size: [
    { local_disk: "/d", max_local_disk_size: "8.5" },
    {
      "nvme.enabled": true,
      "nvme.directories": [{ path: "/d/cairn", capacityBytes: 8.5 * 2 ** 30 }],
    },
  ],
  remote_url: [{ remote_url: "fs://localhost:0/mnt/kv" }, SHARED],
  remote_storage_plugins: [
    {
      remote_storage_plugins: ["fs.one"],
      "extra_config.remote_storage_plugin.fs.one.base_path": "/mnt/kv",
    },
    SHARED,
  ],
  blocking_timeout_secs: [{ blocking_timeout_secs: 100 }, { "remote.requestTimeoutMs": 100_000 }],
  cache_policy: [{ cache_policy: "LRU" }, { "policy.eviction": "lru" }],
  "extra_config.remote_storage_plugin.*": [
    {
      remote_storage_plugins: "fs",
      "extra_config.remote_storage_plugin.fs.base_path": "/mnt/kv",
    },
    SHARED,
  ],
  "extra_config.fs_base_path": [
    { remote_storage_plugins: ["fs"], "extra_config.fs_base_path": "/mnt/kv/" },
    SHARED,
  ],
  "extra_config.s3_region": [
    { remote_url: "s3://kv-1", "extra_config.s3_region": "us-west-2" },
    { ...S3, "remote.s3.prefix": "cairn", "remote.s3.region": "us-west-2" },
  ],
  "extra_config.s3_file_prefix": [
    { remote_url: "s3://kv-1.s3.us-west-2.amazonaws.com", "extra_config.s3_file_prefix": "/a/b/" },
    { ...S3, "remote.s3.prefix": "a/b/cairn", "remote.s3.region": "us-west-2" },
  ],
  LMCACHE_LOG_LEVEL: [{ LMCACHE_LOG_LEVEL: "warning" }, { "log.level": "warn" }],
};

const adapter = (tree: object): string => JSON.stringify(tree);

const SERVER_EXAMPLES: Readonly<Record<string, Example>> = {
  "--l1-size-gb": [{ "--l1-size-gb": "100" }, { "dram.capacityBytes": "100GiB" }],
  "--l1-manager": [
    { "--l1-manager": adapter({ type: "DRAM", tag: "a", size_gb: 7 }) },
    { "dram.capacityBytes": "7GiB" },
  ],
  "--eviction-policy": [{ "--eviction-policy": "LRU" }, { "policy.eviction": "lru" }],
  "--l2-adapter": [
    {
      "--l2-adapter": adapter({
        type: "s3",
        s3_endpoint: "s3.internal:8111",
        s3_region: "us-east-1",
        s3_addressing_style: "path",
        s3_bucket: "kv-1",
        disable_tls: true,
        max_capacity_gb: 10,
      }),
    },
    {
      ...S3,
      "remote.s3.prefix": "cairn",
      "remote.s3.endpoint": "http://s3.internal:8111",
      "remote.s3.region": "us-east-1",
      "remote.s3.pathStyle": true,
      "remote.budgetBytes": "10GiB",
    },
  ],
};

interface Program {
  readonly table: readonly ForeignOption[];
  readonly read: (given: Iterable<Given>) => Reading;
  readonly examples: Readonly<Record<string, Example>>;
}

const PROGRAMS: readonly (readonly [string, Program])[] = [
  ["KVBM", { table: KVBM_OPTIONS, read: readKvbm, examples: KVBM_EXAMPLES }],
  [
    "LMCache",
    {
      table: [...LMCACHE_OPTIONS, ...LMCACHE_VARIABLES],
      read: readLmcache,
      examples: LMCACHE_EXAMPLES,
    },
  ],
  [
    "LMCache's server",
    { table: LMCACHE_SERVER_OPTIONS, read: readServer, examples: SERVER_EXAMPLES },
  ],
];

/** A name that a row with `*` stands for. */
const nameOf = (row: ForeignOption): string => row.name.replace(/\*$/, "any");

describe.each(PROGRAMS)("the options of %s", (_program, { table, read, examples }) => {
  it("are each named once, and become fields that there are", () => {
    const names = table.map(({ name }) => name);
    expect(names.filter((name, index) => names.indexOf(name) !== index)).toEqual([]);
    for (const { name, fate, becomes, remark } of table) {
      if (fate === "mapped") {
        expect(becomes, name).not.toEqual([]);
        for (const path of becomes) expect(fieldOf(path), path).toBeDefined();
      } else expect(remark, name).not.toBe("");
    }
  });

  it("become what the table says, each by an example, and the result proves", () => {
    const mapped = table.filter(({ fate }) => fate === "mapped");
    expect(Object.keys(examples).toSorted()).toEqual(mapped.map(({ name }) => name).toSorted());
    for (const { name, becomes } of mapped) {
      const [options, settings] = examples[name]!;
      const reading = read(given(options));
      expect(settingsOf(reading), name).toEqual(settings);
      expect(
        Object.keys(settings).some((path) => becomes.includes(path)),
        name,
      ).toBe(true);
      expect(
        reading.notes.map(({ fate, source }) => `${fate} ${source}`),
        name,
      ).toEqual(expect.arrayContaining(Object.keys(options).map((source) => `mapped ${source}`)));
      expect(() => proveInherited(reading.groups), name).not.toThrow();
    }
  });

  it("that become no setting are noted with their reason, once, and set nothing", () => {
    for (const row of table.filter(({ fate }) => fate !== "mapped")) {
      const { groups, notes } = read([{ name: nameOf(row), value: "secret-1", source: "here" }]);
      expect(groups, row.name).toEqual([]);
      expect(notes, row.name).toHaveLength(1);
      expect(notes[0]).toMatchObject({ source: "here", fate: row.fate });
      expect(notes[0]!.text).toContain(row.remark);
      if (row.fate === "engine") expect(notes[0]!.text).toContain(row.becomes[0]);
    }
  });

  it("are read and noted even where a value is a tree without a text", () => {
    for (const row of table) {
      for (const value of [{ toString: 1 }, [{ toString: 1 }], { valueOf: {}, toString: {} }]) {
        const { notes } = read([{ name: nameOf(row), value, source: "here" }]);
        expect(notes, row.name).toHaveLength(1);
      }
    }
  });

  it("each end as one note, whatever they hold, and no value that sets nothing is quoted", () => {
    const names = fc.constantFrom(...table.map(nameOf), "unknown_option", "--unknown", "__proto__");
    const value = fc.oneof(
      fc.constantFrom<unknown>("5", 7, true, false, "LRU", "s3://b", "/d", ["fs"], { a: 1 }),
      fc.constant("s3cr3t-of-mine"),
      fc.constant("redis://user:s3cr3t-of-mine@host:1"),
      fc.jsonValue(),
    );
    fc.assert(
      fc.property(fc.array(fc.tuple(names, value), { maxLength: 12 }), (options) => {
        const all = options.map(([name, one], index) => ({
          name,
          value: one,
          source: `#${index}`,
        }));
        const { groups, notes } = read(all);
        expect(notes.map(({ source }) => source).toSorted()).toEqual(
          all.map(({ source }) => source).toSorted(),
        );
        for (const note of notes) {
          expect(note.group === undefined).toBe(note.fate !== "mapped");
          if (note.fate !== "mapped") expect(note.text).not.toContain("s3cr3t");
        }
        // Whatever was read, only problems of the configuration can come of it.
        try {
          proveInherited(groups.slice(0, 1));
        } catch (error) {
          expect(error).toBeInstanceOf(ConfigError);
        }
      }),
      { numRuns: 300 },
    );
  });
});

describe("KVBM's variables", () => {
  it("count decimal gigabytes, exactly", () => {
    expect(settingsOf(kvbm({ DYN_KVBM_CPU_CACHE_GB: "0.5" }))).toEqual({
      "dram.capacityBytes": 500_000_000,
    });
  });

  it("that hold no size are refused: nothing, none, words, the endless", () => {
    for (const text of ["", "0", "-1", "many", "NaN", "inf", "1e9"])
      expect(refusal(kvbm({ DYN_KVBM_CPU_CACHE_GB: text })), text).not.toBe("");
  });

  it("ask for no disk without a directory, since /tmp is no place for it", () => {
    const reading = kvbm({ DYN_KVBM_DISK_CACHE_GB: "8" });
    expect(reading.groups).toEqual([]);
    expect(refusal(reading)).toContain("/tmp");
    expect(refusal(kvbm({ DYN_KVBM_DISK_CACHE_DIR: "/d" }))).toContain("DYN_KVBM_DISK_CACHE_GB");
    const relative = { DYN_KVBM_DISK_CACHE_GB: "8", DYN_KVBM_DISK_CACHE_DIR: "d" };
    expect(refusal(kvbm(relative))).toContain("absolute");
  });

  it("name a bucket only where they turn it on, one for all workers, at an address without a password", () => {
    const on = { DYN_KVBM_OBJECT_ENABLED: "true", DYN_KVBM_OBJECT_BUCKET: "kv-1" };
    expect(kvbm({ ...on, DYN_KVBM_OBJECT_ENABLED: "0" }).groups).toEqual([]);
    expect(kvbm({ DYN_KVBM_OBJECT_BUCKET: "kv-1" }).groups).toEqual([]);
    expect(kvbm({ DYN_KVBM_OBJECT_ENABLED: "1" }).groups).toEqual([]);
    expect(kvbm({ ...on, DYN_KVBM_OBJECT_BUCKET: "kv-{worker_id}" }).groups).toEqual([]);
    for (const endpoint of ["http://u:p@minio", "http://minio/path", "ftp://minio", "http://"])
      expect(kvbm({ ...on, DYN_KVBM_OBJECT_ENDPOINT: endpoint }).groups, endpoint).toEqual([]);
    expect(kvbm(on).groups).toHaveLength(1);
  });

  it("are told from the service links of a pod", () => {
    const links = {
      DYN_KVBM_SERVICE_HOST: "10.0.0.1",
      DYN_KVBM_PORT: "tcp://10.0.0.1:80",
      DYN_KVBM_METRICS_PORT: "6880",
    };
    expect(kvbm(links).notes.map(({ source }) => source)).toEqual(["DYN_KVBM_METRICS_PORT"]);
  });

  it("that nobody knows are said to be unknown, with the nearest name", () => {
    expect(kvbm({ DYN_KVBM_CPU_CACHE: "8" }).notes).toMatchObject([
      { fate: "unknown", text: expect.stringContaining("DYN_KVBM_CPU_CACHE_GB") },
    ]);
  });
});

describe("LMCache's file and variables", () => {
  const text = [
    "chunk_size: 256",
    'local_disk: "file:///mnt/nvme/"',
    "max_local_disk_size: 100",
    "extra_config:",
    "  use_odirect: true",
    "  colour: blue",
    "remote_url: null",
  ].join("\n");

  it("are named by line and key", () => {
    const { notes } = readLmcache(lmcacheFileGiven(text, "lm.yaml"));
    expect(notes.map(({ source, fate }) => `${fate}: ${source}`).toSorted()).toEqual([
      "mapped: lm.yaml:2 local_disk",
      "mapped: lm.yaml:3 max_local_disk_size",
      "needless: lm.yaml:1 chunk_size",
      "needless: lm.yaml:5 extra_config.use_odirect",
      "needless: lm.yaml:7 remote_url",
      "unknown: lm.yaml:6 extra_config.colour",
    ]);
  });

  it("may be JSON or empty, and nothing else than a map", () => {
    expect(readLmcache(lmcacheFileGiven('{"max_local_cpu_size": 2.0}', "a")).groups).toHaveLength(
      1,
    );
    expect(lmcacheFileGiven("", "a")).toEqual([]);
    for (const broken of ["- 1", "a: [", "text", "a: *b", "a".repeat(1_048_577)])
      expect(() => lmcacheFileGiven(broken, "a"), broken.slice(0, 9)).toThrow(ConfigError);
  });

  it("agree: a variable is its key in capitals, wins over the file, and may be quoted", () => {
    const file = lmcacheFileGiven("max_local_cpu_size: 5", "lm.yaml");
    const variables = lmcacheVariablesGiven({ LMCACHE_MAX_LOCAL_CPU_SIZE: '"7.0"' });
    const reading = readLmcache([...file, ...variables]);
    expect(settingsOf(reading)).toEqual({ "dram.capacityBytes": "7GiB" });
    expect(refusal(reading)).toContain("given again");
  });

  it("multiply sizes by the worker processes that each had as much", () => {
    const options = { max_local_cpu_size: 5, local_disk: "/d", max_local_disk_size: 3 };
    expect(settingsOf(readLmcache(given(options), 8))).toMatchObject({
      "dram.capacityBytes": "40GiB",
      "nvme.directories": [{ path: "/d/cairn", capacityBytes: "24GiB" }],
    });
  });

  it("take extra_config as JSON or in single quotes, and say so when it is neither", () => {
    for (const extra of ['{"use_odirect": true}', "{'use_odirect': True}"])
      expect(
        readLmcache(lmcacheVariablesGiven({ LMCACHE_EXTRA_CONFIG: extra })).notes,
      ).toMatchObject([{ source: "LMCACHE_EXTRA_CONFIG use_odirect", fate: "needless" }]);
    for (const extra of ["blue", "[1]", "{"])
      expect(
        refusal(readLmcache(lmcacheVariablesGiven({ LMCACHE_EXTRA_CONFIG: extra }))),
      ).toContain("no map");
  });

  it("name a disk by absolute paths and a size, or not at all", () => {
    const size = { max_local_disk_size: 10 };
    for (const path of ["~/cache", "file://~/cache/", "cache", "/a,,/b", "/a,b", "/a\u0000b"])
      expect(refusal(readLmcache(given({ local_disk: path, ...size }))), path).toContain(
        "absolute",
      );
    expect(readLmcache(given({ local_disk: "/d" })).groups).toEqual([]);
    expect(readLmcache(given({ local_disk: "/d", max_local_disk_size: 0 })).groups).toEqual([]);
  });

  it("name no store that would have to be guessed, and none that cairn has not", () => {
    const urls = [
      ...["s3://my.bucket.store.example", "s3://b.s3express-use1-az4.us-east-1.amazonaws.com"],
      ...[
        "redis://h:6379",
        "rediss://u:p@h:1",
        "lm://h:1",
        "mooncakestore://h:1/",
        "h:1",
        "fs://h",
      ],
      ...["fs://h:0/a,/b", "s3://", "s3://UPPER"],
    ];
    for (const url of urls) {
      const reading = readLmcache(given({ remote_url: url }));
      expect(reading.groups, url).toEqual([]);
      expect(
        reading.notes.map(({ fate }) => fate),
        url,
      ).toEqual(["refused"]);
    }
    for (const plugins of [["redis"], ["fs", "fs.two"], "fsx", []])
      expect(readLmcache(given({ remote_storage_plugins: plugins })).groups).toEqual([]);
  });

  it("say that a switch is off where it is, and never that the DRAM tier could be", () => {
    const options = { enable_p2p: "false", local_cpu: "false", save_decode_cache: false };
    const fates = readLmcache(given(options)).notes.map(({ source, fate }) => `${source} ${fate}`);
    expect(fates).toEqual([
      "enable_p2p needless",
      "local_cpu missing",
      "save_decode_cache missing",
    ]);
  });
});

describe("a command line of LMCache's server", () => {
  it("is read with = and without, with lists, switches and what stands before", () => {
    const words = ["lmcache", "server", "--l1-size-gb=10", "--script-allowed-imports", "a", "b"];
    const { notes } = server(
      ...words,
      "--l1-use-lazy",
      "--null-block-id",
      "-1",
      "--colour",
      "blue",
    );
    expect(notes.map(({ source, fate }) => `${source} ${fate}`).toSorted()).toEqual([
      "--colour unknown",
      "--l1-size-gb mapped",
      "--l1-use-lazy needless",
      "--null-block-id needless",
      "--script-allowed-imports missing",
    ]);
  });

  it("adds up what its managers of DRAM have", () => {
    const managers = [4, 6].flatMap((size_gb) => [
      "--l1-manager",
      adapter({ type: "DRAM", size_gb }),
    ]);
    const reading = server(...managers, "--l1-manager", adapter({ type: "GDS", size_gb: 9 }));
    expect(settingsOf(reading)).toEqual({ "dram.capacityBytes": "10GiB" });
    expect(refusal(reading)).toContain("DRAM alone");
  });

  it("becomes one directory for each adapter of files, with its size where it has one", () => {
    const fs = adapter({ type: "fs", base_path: "/a", max_capacity_gb: 4 });
    const native = adapter({ type: "fs_native", base_path: "/b" });
    expect(settingsOf(server("--l2-adapter", fs, "--l2-adapter", native))).toEqual({
      "nvme.enabled": true,
      "nvme.directories": [
        { path: "/a/cairn", capacityBytes: "4GiB" },
        { path: "/b/cairn", capacityBytes: "auto" },
      ],
    });
  });

  it("becomes nothing by an adapter that is broken or of another kind", () => {
    const adapters = [
      ...["{", "[]", "1", adapter({ type: "nixl_store" }), adapter({ type: "fs" })],
      adapter({ type: "fs", base_path: "/a", max_capacity_gb: -1 }),
      adapter({ type: "s3", s3_endpoint: "minio.local:9000", s3_region: "r" }),
      adapter({ type: "s3", s3_endpoint: "s3://kv-1", s3_region: "r", s3_enable_s3express: true }),
      adapter({ type: "s3", s3_endpoint: "s3://kv-1", s3_region: "r", max_capacity_gb: "x" }),
    ];
    for (const one of adapters) {
      const reading = server("--l2-adapter", one);
      expect(reading.groups, one).toEqual([]);
      expect(
        reading.notes.map(({ fate }) => fate),
        one,
      ).toEqual(["refused"]);
    }
  });
});

describe("the page of a migration", () => {
  it("is a cairn.yaml of what was taken, with a comment for each option", () => {
    const reading = readLmcache(
      lmcacheFileGiven("max_local_cpu_size: 2\nenable_p2p: true\ncolour: blue\n", "lm.yaml"),
    );
    const { config, notes, text } = migrate([reading]);
    expect(config).toEqual({ dram: { capacityBytes: "2GiB" } });
    expect(parseYaml(text)).toEqual(config);
    for (const note of notes) expect(text).toContain(`#   ${note.source}: ${note.text}\n`);
    expect(text).toContain("# No counterpart:\n#   lm.yaml:2 enable_p2p: ");
  });

  it("leaves out what does not prove, and what an earlier source says already", () => {
    const small = kvbm({ DYN_KVBM_CPU_CACHE_GB: "0.001" });
    const good = kvbm({ DYN_KVBM_CPU_CACHE_GB: "2" });
    const second = readLmcache(given({ max_local_cpu_size: 3 }));
    const { config, notes } = migrate([small, good, second]);
    expect(config).toEqual({ dram: { capacityBytes: "2GB" } });
    expect(notes.map(({ fate }) => fate)).toEqual(["refused", "mapped", "refused"]);
    expect(notes[0]!.text).toContain("slab");
    expect(notes[2]!.text).toContain("DYN_KVBM_CPU_CACHE_GB");
  });

  it("stays a valid cairn.yaml that says just this, whatever a file holds", () => {
    const key = fc.oneof(
      fc.constantFrom(
        ...LMCACHE_OPTIONS.map(nameOf),
        "x\ndram: {blocksMax: 1}",
        "a\u2028b: 1",
        "#",
      ),
      fc.string({ maxLength: 20 }),
    );
    const value = fc.oneof(
      fc.constantFrom<unknown>(5, "s3://kv-1", "/d", "file:///a/,/b", "fs://h/x: y", "LRU", true),
      fc.jsonValue({ maxDepth: 2 }),
    );
    fc.assert(
      fc.property(fc.dictionary(key, value, { maxKeys: 10 }), (tree) => {
        const reading = readLmcache(lmcacheFileGiven(stringify(tree), "lm\n.yaml"));
        const { config, text } = migrate([reading]);
        const { tree: read, problems } = readYaml(text, "cairn.yaml");
        expect(problems).toEqual([]);
        expect(read).toEqual(readYaml(stringify(config), "cairn.yaml").tree);
      }),
      { numRuns: 100 },
    );
  });
});

describe("docs/migration.md", () => {
  const page = readFileSync(new URL("../../docs/migration.md", import.meta.url), "utf8");

  it("is what `cairn config reference --write` makes of the tables", () => {
    expect(page).toBe(migrationReference());
    for (const [, { table }] of PROGRAMS)
      for (const { name } of table) expect(page).toContain(`\`${name}\``);
  });

  it("names options of the connector that the connector has", () => {
    const connector = readFileSync(new URL("../../docs/engine-vllm.md", import.meta.url), "utf8");
    const named = PROGRAMS.flatMap(([, { table }]) =>
      table.flatMap(({ fate, becomes }) => (fate === "engine" ? becomes : [])),
    );
    for (const name of named) expect(connector).toContain(`| \`${name}\` |`);
  });
});
