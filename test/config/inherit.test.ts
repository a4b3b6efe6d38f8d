/** What a start takes over from variables of other programs, and what it never does because of them. */
import { chmodSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { inherit } from "../../src/config/inherit.ts";
import { type ConfigSources, ConfigError, loadConfig } from "../../src/config/load.ts";
import { KVBM_OPTIONS } from "../../src/config/migrate/kvbm.ts";
import { poolFault } from "../../src/daemon/pool-fit.ts";
import { LMCACHE_OPTIONS, LMCACHE_VARIABLES } from "../../src/config/migrate/lmcache-options.ts";

const directory = mkdtempSync(join(tmpdir(), "cairn-inherit-"));
const file = join(directory, "cairn.yaml");
const disk = join(directory, "disk");

beforeAll(() => {
  mkdirSync(disk);
  writeFileSync(file, "");
});
afterAll(() => rmSync(directory, { recursive: true }));

type Variables = Readonly<Record<string, string>>;

async function start(env: Variables, from: ConfigSources = {}, poolFault?: string) {
  const taken = await inherit({ file, env, ...from }, () => Promise.resolve(() => poolFault));
  return { from: taken.sources, warnings: taken.warnings, ...loadConfig(taken.sources) };
}

function withFile(text: string): ConfigSources {
  const path = join(directory, "own.yaml");
  writeFileSync(path, text);
  return { file: path };
}

const KVBM_DISK = { DYN_KVBM_DISK_CACHE_GB: "8", DYN_KVBM_DISK_CACHE_DIR: disk };

describe("a start among variables of other programs", () => {
  it("loads nothing and says nothing where there are none", async () => {
    const env = { PATH: "/bin", DYN_LOG: "debug", CAIRN_LOG_LEVEL: "warn" };
    const sources = { file, env };
    const found = await inherit(sources, () => {
      throw new Error("nobody asks for the pool");
    });
    expect(found).toEqual({ sources, warnings: [] });
    expect(found.sources).toBe(sources);
  });

  it("takes sizes and disks that no setting of its own says, one warning for each variable", async () => {
    const { config, sources, warnings } = await start({
      ...KVBM_DISK,
      DYN_KVBM_CPU_CACHE_GB: "2",
      DYN_KVBM_METRICS: "true",
    });
    expect(config.dram.capacityBytes).toBe(2e9);
    expect(config.nvme).toMatchObject({
      enabled: true,
      directories: [{ path: join(disk, "cairn"), capacityBytes: 8e9 }],
    });
    expect(sources.get("dram.capacityBytes")).toBe("DYN_KVBM_CPU_CACHE_GB");
    expect(sources.get("nvme.directories")).toBe("DYN_KVBM_DISK_CACHE_GB, DYN_KVBM_DISK_CACHE_DIR");
    expect(
      warnings.map(({ source, text }) => `${source} ${text.split(":")[0]}`).toSorted(),
    ).toEqual([
      "DYN_KVBM_CPU_CACHE_GB taken over",
      "DYN_KVBM_DISK_CACHE_DIR taken over",
      "DYN_KVBM_DISK_CACHE_GB taken over",
      "DYN_KVBM_METRICS ignored",
    ]);
  });

  it("takes LMCache's file that LMCACHE_CONFIG_FILE names, and its variables over it", async () => {
    const lmcache = join(directory, "lmcache.yaml");
    writeFileSync(lmcache, "max_local_cpu_size: 3\ncache_policy: LRU\nchunk_size: 256\n");
    const env = { LMCACHE_CONFIG_FILE: lmcache, LMCACHE_LOG_LEVEL: "DEBUG" };
    const { config, sources, warnings } = await start(env);
    expect(config).toMatchObject({ dram: { capacityBytes: 3 * 2 ** 30 }, log: { level: "debug" } });
    expect(sources.get("dram.capacityBytes")).toBe(`${lmcache}:1 max_local_cpu_size`);
    expect(warnings).toHaveLength(5);
    const over = await start({ ...env, LMCACHE_MAX_LOCAL_CPU_SIZE: "4" });
    expect(over.config.dram.capacityBytes).toBe(4 * 2 ** 30);
  });

  it("lets its own file, variables and flags win, and says which", async () => {
    const env = { DYN_KVBM_CPU_CACHE_GB: "2" };
    const own: readonly (readonly [ConfigSources, string])[] = [
      [withFile("dram: {capacityBytes: 1GiB}\n"), "own.yaml:1"],
      [{ env: { ...env, CAIRN_DRAM_CAPACITY_BYTES: "1GiB" } }, "CAIRN_DRAM_CAPACITY_BYTES"],
      [{ flags: { "dram.capacityBytes": "1GiB" } }, "--dram.capacityBytes"],
      [withFile("dram: {capacityBytes: 1073741824}\n"), "own.yaml:1"],
    ];
    for (const [from, where] of own) {
      const { config, warnings } = await start(env, from);
      expect(config.dram.capacityBytes).toBe(2 ** 30);
      expect(warnings).toMatchObject([
        { source: "DYN_KVBM_CPU_CACHE_GB", text: expect.stringContaining(where) },
      ]);
    }
  });

  it("takes no part of what belongs together once its own settings say another part", async () => {
    const off = await start(KVBM_DISK, withFile("nvme: {enabled: false}\n"));
    expect(off.config.nvme).toMatchObject({ enabled: false, directories: [] });
    expect(off.warnings.map(({ text }) => text.includes("nvme.enabled is set"))).toEqual([
      true,
      true,
    ]);
    const bucket = { DYN_KVBM_OBJECT_ENABLED: "1", DYN_KVBM_OBJECT_BUCKET: "kv-1" };
    const shared = "remote: {enabled: true, kind: directory, directory: /mnt/shared}\n";
    expect((await start(bucket, withFile(shared))).config.remote).toMatchObject({
      kind: "directory",
      s3: { bucket: "" },
    });
    expect((await start(bucket, withFile("nvme: {direct: off}\n"))).config.remote).toMatchObject({
      kind: "s3",
      s3: { bucket: "kv-1" },
    });
  });

  it("lets the first of two programs that say the same count", async () => {
    const env = { LMCACHE_MAX_LOCAL_CPU_SIZE: "3", DYN_KVBM_CPU_CACHE_GB: "2" };
    const { config, warnings } = await start(env);
    expect(config.dram.capacityBytes).toBe(2e9);
    expect(warnings.find(({ source }) => source.startsWith("LMCACHE"))?.text).toContain(
      "DYN_KVBM_CPU_CACHE_GB says it already",
    );
  });

  it("ignores what does not prove beside its own settings, and takes the rest", async () => {
    const env = { ...KVBM_DISK, DYN_KVBM_CPU_CACHE_GB: "0.01" };
    const { config, warnings } = await start(env);
    expect(config.dram.capacityBytes).toBe("auto");
    expect(config.nvme.enabled).toBe(true);
    expect(warnings.find(({ source }) => source.includes("CPU"))?.text).toContain("slab");
    const pins = withFile("engineApi: {pinnedBytesMax: 4GiB}\n");
    const pinned = await start({ DYN_KVBM_CPU_CACHE_GB: "2" }, pins);
    expect(pinned.config.dram.capacityBytes).toBe("auto");
    expect(pinned.warnings[0]?.text).toContain("pinnedBytesMax");
  });

  it("ignores a pool that the host does not hold", async () => {
    const env = { ...KVBM_DISK, DYN_KVBM_CPU_CACHE_GB: "2" };
    const { config, warnings } = await start(env, {}, "exceeds free memory");
    expect(config).toMatchObject({ dram: { capacityBytes: "auto" }, nvme: { enabled: true } });
    expect(warnings.filter(({ text }) => text.includes("exceeds free memory"))).toMatchObject([
      { source: "DYN_KVBM_CPU_CACHE_GB" },
    ]);
  });

  it("asks the host itself what pool it holds, also where the pool's directory is not there yet", async () => {
    const below = join(directory, "pool", "below");
    const place = { flags: { "dram.directory": below, "dram.slabBytes": "1GiB" } };
    const ask = (gigabytes: string) =>
      inherit({ file, env: { DYN_KVBM_CPU_CACHE_GB: gigabytes }, ...place }, () =>
        Promise.resolve(poolFault),
      );
    expect((await ask("16000")).warnings[0]?.text).toContain("this host holds");
    expect((await ask("1.5")).warnings[0]?.text).toContain("taken over");
  });

  it("ignores directories that a start could not use", async () => {
    const places = {
      absent: join(directory, "absent"),
      file,
      below: join(file, "below"),
      open: join(directory, "open"),
      linked: join(directory, "linked"),
    };
    mkdirSync(join(places.open, "cairn"), { recursive: true });
    chmodSync(join(places.open, "cairn"), 0o755);
    mkdirSync(places.linked);
    symlinkSync(disk, join(places.linked, "cairn"));
    for (const [why, place] of Object.entries(places)) {
      const { config, warnings } = await start({ ...KVBM_DISK, DYN_KVBM_DISK_CACHE_DIR: place });
      expect(config.nvme.enabled, why).toBe(false);
      expect(
        warnings.map(({ text }) => text.startsWith("ignored: ")),
        why,
      ).toEqual([true, true]);
    }
    mkdirSync(join(disk, "cairn"), { mode: 0o700 });
    expect((await start(KVBM_DISK)).config.nvme.enabled).toBe(true);
  });

  it("takes a shared directory only where its folder is there", async () => {
    const env = { LMCACHE_REMOTE_URL: `fs://h:0${directory}/shared` };
    expect((await start(env)).config.remote.enabled).toBe(false);
    mkdirSync(join(directory, "shared", "cairn"), { recursive: true });
    expect((await start(env)).config.remote).toMatchObject({
      enabled: true,
      directory: join(directory, "shared", "cairn"),
    });
  });

  it("says of a file of LMCache that it cannot be read, and starts", async () => {
    const broken = join(directory, "broken.yaml");
    writeFileSync(broken, "a: [s3cr3t\nb: &s3cr3t *s3cr3t ]s3cr3t\n");
    for (const path of [broken, join(directory, "nowhere.yaml"), directory, "/dev/zero"]) {
      const { warnings } = await start({ LMCACHE_CONFIG_FILE: path });
      expect(warnings, path).toMatchObject([
        { source: "LMCACHE_CONFIG_FILE", text: expect.stringContaining(path) },
      ]);
      expect(warnings[0]?.text).not.toContain("s3cr3t");
    }
  });

  it("keeps what was taken at a reload, although the file is gone, until its own settings say it", async () => {
    const lmcache = join(directory, "gone.yaml");
    writeFileSync(lmcache, "max_local_cpu_size: 3\n");
    const from = withFile("");
    const taken = await start({ LMCACHE_CONFIG_FILE: lmcache }, from);
    rmSync(lmcache);
    expect(loadConfig(taken.from).config.dram.capacityBytes).toBe(3 * 2 ** 30);
    withFile("dram: {capacityBytes: 1GiB}\n");
    expect(loadConfig(taken.from).config.dram.capacityBytes).toBe(2 ** 30);
  });

  it("refuses its own faults as ever, whatever the others say", async () => {
    const broken = withFile("dram: {capacity: 1}\n");
    await expect(start({ DYN_KVBM_CPU_CACHE_GB: "2" }, broken)).rejects.toThrow(ConfigError);
  });

  it("comes up whatever the variables hold, with a line of one row for each and no secret in it", async () => {
    const names = [
      ...KVBM_OPTIONS.map(({ name }) => name),
      ...LMCACHE_OPTIONS.filter(({ name }) => !name.includes(".")).map(
        ({ name }) => `LMCACHE_${name.toUpperCase()}`,
      ),
      ...LMCACHE_VARIABLES.map(({ name }) => name),
    ].filter((name) => !name.endsWith("*") && name !== "LMCACHE_EXTRA_CONFIG");
    const value = fc.oneof(
      fc.constantFrom(
        "1",
        "2.5",
        "true",
        "off",
        "LRU",
        "kv-1",
        disk,
        `file://${disk}`,
        "s3://kv-1",
      ),
      fc.constantFrom("1e99", "", "-", "redis://u:s3cr3t@h", "http://u:s3cr3t@h", "a\nb\u001b[2J"),
      fc.string({ maxLength: 12 }).filter((text) => !text.includes("\0")),
    );
    const variables = fc.dictionary(fc.constantFrom(...names), value, { maxKeys: 8 });
    await fc.assert(
      fc.asyncProperty(variables, async (env) => {
        const { warnings } = await start(env);
        expect(new Set(warnings.map(({ source }) => source)).size).toBe(
          Object.keys(env).filter((name) => env[name] !== undefined).length,
        );
        for (const { source, text } of warnings) {
          expect(`${source}${text}`).not.toMatch(/\p{Cc}/u);
          // The path of a file is no secret.
          if (source !== "LMCACHE_CONFIG_FILE") expect(text).not.toContain("s3cr3t");
        }
      }),
      { numRuns: 150 },
    );
  });
});
