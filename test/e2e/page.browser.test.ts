/**
 * The live page in a real browser. Debian and Ubuntu bring one in the package `chromium`; where none is
 * found the reason is printed and only the page's files are compared with each other. With CI_FULL=1 a
 * missing browser is a failure.
 */
import { readFileSync } from "node:fs";
import { afterAll, beforeAll, describe, expect, test, vi } from "vitest";
import { type EdgeHandle, startEdge } from "../../src/edge/edge.ts";
import { Feed, METRIC } from "../../src/observe/feed.ts";
import { publishDevices, publishRemote } from "../../src/observe/lower.ts";
import { DEVICE, FakeDaemon, INFO, REMOTE } from "../edge/fixture.ts";
import { Browser, findBrowser } from "./browser.ts";

const WAIT = { timeout: 60_000, interval: 200 };
const GIB = 2 ** 30;

const name = findBrowser();
const required = process.env["CI_FULL"] === "1";
if (name === undefined)
  console.warn("the live page is not rendered: no browser; install the package `chromium`");

test("every element that the page's script names stands in the page", () => {
  const read = (file: string): string =>
    readFileSync(new URL(`../../dashboard/${file}`, import.meta.url), "utf8");
  const html = read("index.html");
  const named = [...read("page.js").matchAll(/(?:element|setText)\("(\w+)"/g)].map(
    (match) => match[1],
  );
  expect(named.length).toBeGreaterThan(15);
  expect(named.filter((id) => !html.includes(`id="${id}"`))).toEqual([]);
});

function inBrowser(): void {
  const feed = new Feed();
  let edge: EdgeHandle;
  let browser: Browser;

  beforeAll(async () => {
    if (name === undefined)
      throw new Error("CI_FULL=1 needs a browser: install the package `chromium`");
    feed.set(METRIC.ready, 1);
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
    edge.notice({ level: "warn", text: "<b id=injected>a block</b> was dropped" });
    browser = await Browser.open(name, `http://${edge.address}/`);
  });
  afterAll(async () => {
    await browser?.close();
    await edge?.stop();
  });

  const text = async (id: string): Promise<string> =>
    String(await browser.evaluate(`document.getElementById("${id}")?.textContent ?? ""`));
  const shows = (id: string, words: string) =>
    vi.waitUntil(async () => (await text(id)).includes(words), WAIT);

  test("it shows state, tiers, hit rate, faults and engines of a running daemon", async () => {
    await shows("state", "serving");
    await shows("tiers", "2.0 GiB of 8.0 GiB (25.0 %)");
    await shows("tiers", "1,230 blocks readable of 1,234");
    await shows("hitRateTotal", "75.0 %");
    await shows("faults", "corrupt blocks dropped7");
    await shows("engines", "engine-1");
    await shows("node", "node-a");
    expect(await browser.evaluate('document.querySelector(".fill").style.width')).toBe("25%");
  });

  test("disks and the remote store are shown once there are any, with state, queue, wear and life", async () => {
    expect(await browser.evaluate('document.getElementById("lower").hidden')).toBe(true);
    edge.devices(["/mnt/<i>a</i>", "/mnt/b"]);
    const used = { capacityBytes: 4 * GIB, usedBytes: GIB };
    const wear = { bytesPerDay: 2 * GIB, budgetBytesPerDay: 8 * GIB, lifeDays: 1_095 };
    const endurance = { ...DEVICE.endurance, ...wear };
    const first = { ...DEVICE, ...used, endurance, health: "ok" as const };
    const second = { ...DEVICE, device: 1, health: "fenced" as const, segmentsTarget: 3 };
    publishDevices(feed, [first, second]);
    publishRemote(feed, REMOTE);
    await shows("devices", "/mnt/<i>a</i>ok, preparing 1 segments1.0 GiB of 4.0 GiB (25.0 %)");
    await shows("devices", "6 reads, 7 writes82.0 GiB of 8.0 GiB3 years");
    await shows("devices", "/mnt/bfenced");
    await shows("remote", "Remote store: read-only");
    feed.observe(METRIC.nvmeReadSeconds, 0.003);
    await shows("diskLatency", "writes idle");
    await vi.waitUntil(
      async () => /Disk reads p50 [\d.]+ ms/.test(await text("diskLatency")),
      WAIT,
    );
    const health = 'document.querySelectorAll("#devices .health")[1].dataset.level';
    expect(await browser.evaluate(health)).toBe("bad");
    expect(await browser.evaluate('document.getElementById("lower").hidden')).toBe(false);
    publishDevices(feed, [{ ...first, bytesRead: 100 * GIB }, second]);
    await vi.waitUntil(async () => /[1-9][\d.]* GB\/s/.test(await text("devices")), WAIT);
  });

  test("it moves as the daemon does, without a reload", async () => {
    feed.setAt(METRIC.tierUsedBytes, 0, 4 * GIB);
    feed.add(METRIC.loadedBytes, 10 * GIB);
    await shows("tiers", "4.0 GiB of 8.0 GiB (50.0 %)");
    await shows("loadRate", "GB/s");
    edge.notice({ level: "info", text: "an engine came" });
    await shows("events", "an engine came");
    const path = 'document.querySelector("#bandChart path.load").getAttribute("d")';
    expect(await browser.evaluate(path)).toMatch(/^M[\d.]+ [\d.]+/);
  });

  test("what engines send is text, never markup, and the page breaks none of its own policy", async () => {
    await shows("events", "<b id=injected>a block</b> was dropped");
    expect(await browser.evaluate('document.getElementById("injected") === null')).toBe(true);
    expect(browser.complaints).toEqual([]);
  });

  test("when the daemon goes, the page says so", async () => {
    await edge.stop();
    await shows("state", "no connection");
  });
}

if (name !== undefined || required) describe("the live page in a browser", inBrowser);
