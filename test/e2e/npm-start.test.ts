import { spawn } from "node:child_process";
import { once } from "node:events";
import { describe, expect, it } from "vitest";
import { accepts, cleanEnvironment, ROOT, TestDaemon } from "../harness/daemon.ts";
import { eventually, within } from "../harness/eventually.ts";

describe("the daemon as the README starts it", () => {
  it("stops when the npm that started it is told to: no process of it stays behind", async () => {
    const daemon = new TestDaemon();
    daemon.configure({});
    const words = ["run", "-s", "cairn", "--", "daemon", "--config", daemon.configPath];
    // A group of its own, so that whatever stays behind ends with the test.
    const npm = spawn("npm", words, {
      cwd: ROOT,
      env: cleanEnvironment(),
      stdio: "ignore",
      detached: true,
    });
    const ended = once(npm, "exit");
    try {
      await eventually("the daemon serves", () => accepts(daemon.socket));
      npm.kill("SIGTERM");
      await within("npm ends", ended);
      await eventually("nobody serves engines", async () => !(await accepts(daemon.socket)));
      expect(daemon.poolFiles().length).toBeGreaterThan(0);
    } finally {
      try {
        process.kill(-(npm.pid ?? 0), "SIGKILL");
      } catch {
        // All have ended.
      }
      await daemon.remove();
    }
  });
});
