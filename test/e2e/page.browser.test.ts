/**
 * The live page in a real browser. Debian and Ubuntu bring one in the package `chromium`; where none is
 * found the reason is printed, and with CI_FULL=1 that is a failure.
 */
import { spawn, spawnSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type EdgeHandle, startEdge } from "../../src/edge/edge.ts";
import { Feed, METRIC } from "../../src/observe/feed.ts";
import { FakeDaemon, INFO } from "../edge/fixture.ts";

const CANDIDATES = ["chromium", "chromium-browser", "google-chrome"] as const;
const BROWSER_MS = 90_000;
const GIB = 2 ** 30;

const browser = CANDIDATES.find((name) => spawnSync(name, ["--version"]).status === 0);
const required = process.env["CI_FULL"] === "1";
if (browser === undefined)
  console.warn(
    "page.browser.test: no browser; install the package `chromium` (apt-get install chromium)",
  );

test("a browser is there where the full suite runs", () => {
  if (required) expect(browser, "install the package `chromium`").toBeDefined();
  expect(CANDIDATES).toContain(browser ?? "chromium");
});

describe.skipIf(browser === undefined && !required)("the live page", () => {
  const profile = mkdtempSync(join(tmpdir(), "cairn-browser-"));
  const feed = new Feed();
  let edge: EdgeHandle;

  beforeAll(async () => {
    feed.set(METRIC.ready, 1);
    feed.set(METRIC.instances, 2);
    feed.setAt(METRIC.tierCapacityBytes, 0, 8 * GIB);
    feed.setAt(METRIC.tierUsedBytes, 0, 2 * GIB);
    feed.setAt(METRIC.tierBlocks, 0, 1_234);
    feed.setAt(METRIC.tierVisibleBlocks, 0, 1_230);
    feed.add(METRIC.corruptBlocks, 7);
    feed.add(METRIC.lookupBlocksRequested, 100);
    feed.addAt(METRIC.lookupBlocksHit, 0, 75);
    const config = { listen: "127.0.0.1:0" };
    const handler = new FakeDaemon();
    edge = await startEdge({ config, feed: feed.buffer, ledger: null, info: INFO, handler });
    edge.notice({ level: "warn", text: "<b>not markup</b> was dropped" });
  });
  afterAll(async () => {
    await edge.stop();
    rmSync(profile, { recursive: true, force: true });
  });

  /** The document as the browser holds it once scripts ran, and what it complained about. */
  async function render(): Promise<{ dom: string; console: string }> {
    const flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"];
    const args = [
      `--user-data-dir=${profile}`,
      "--enable-logging=stderr",
      "--timeout=6000",
      "--dump-dom",
    ];
    const child = spawn(browser ?? "chromium", [...flags, ...args, `http://${edge.address}/`], {
      stdio: ["ignore", "pipe", "pipe"],
    });
    const timer = setTimeout(() => child.kill("SIGKILL"), BROWSER_MS);
    let dom = "";
    let log = "";
    child.stdout.setEncoding("utf8").on("data", (part: string) => {
      dom += part;
    });
    child.stderr.setEncoding("utf8").on("data", (part: string) => {
      log += part;
    });
    await new Promise((resolve) => child.once("close", resolve));
    clearTimeout(timer);
    return {
      dom,
      console: log
        .split("\n")
        .filter((line) => line.includes("CONSOLE"))
        .join("\n"),
    };
  }

  test("tiers, hit rate, faults, engines and notices show, as text, and nothing breaks its own policy", {
    timeout: BROWSER_MS + 30_000,
  }, async () => {
    const { dom, console: complaints } = await render();
    expect(complaints).toBe("");
    expect(dom).toContain('data-state="serving"');
    expect(dom).toContain("2.0 GiB of 8.0 GiB (25.0 %)");
    expect(dom).toMatch(/class="fill" style="width: 25%;?"/);
    expect(dom).toContain("1,230 blocks readable of 1,234");
    expect(dom).toContain("since start 75.0 %");
    expect(dom).toMatch(/<dt>corrupt blocks dropped<\/dt><dd data-level="warn">7<\/dd>/);
    expect(dom).toMatch(/<td>engine-1<\/td>/);
    expect(dom).toContain("&lt;b&gt;not markup&lt;/b&gt; was dropped");
    expect(dom).toMatch(/<path d="[^"]*" class="load">/);
    expect(dom).toContain("node-a · 0.1.0");
  });
});
