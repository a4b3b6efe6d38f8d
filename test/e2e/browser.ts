/**
 * A real browser over its debugging pipe: descriptors 3 and 4, JSON messages ended by a zero byte. No
 * package is needed, no port is opened.
 */
import { type ChildProcess, spawn, spawnSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Readable, Writable } from "node:stream";
import { eventually } from "../harness/eventually.ts";

const CANDIDATES = ["chromium", "chromium-browser", "google-chrome"] as const;
const FLAGS = [
  "--headless",
  "--no-sandbox",
  "--disable-gpu",
  "--disable-dev-shm-usage",
  "--disable-background-networking",
  "--remote-debugging-pipe",
];

/** The first browser of this host; undefined if there is none. */
export function findBrowser(): string | undefined {
  return CANDIDATES.find((name) => spawnSync(name, ["--version"]).status === 0);
}

interface Message {
  readonly id?: number;
  readonly method?: string;
  readonly params?: Record<string, unknown>;
  readonly result?: Record<string, unknown>;
  readonly error?: { readonly message: string };
}

export class Browser {
  /** Everything the page logged, threw, or broke of its security policy. */
  readonly complaints: string[] = [];
  readonly #child: ChildProcess;
  readonly #profile: string;
  readonly #waiting = new Map<number, (message: Message) => void>();
  #nextId = 1;
  #session = "";

  private constructor(name: string) {
    this.#profile = mkdtempSync(join(tmpdir(), "cairn-browser-"));
    this.#child = spawn(name, [...FLAGS, `--user-data-dir=${this.#profile}`], {
      stdio: ["ignore", "ignore", "ignore", "pipe", "pipe"],
      // A process group of its own, so that its helpers can be ended with it.
      detached: true,
    });
    let text = "";
    (this.#child.stdio[4] as Readable).setEncoding("utf8").on("data", (part: string) => {
      const messages = (text + part).split("\0");
      text = messages.pop() ?? "";
      for (const message of messages) this.#receive(JSON.parse(message) as Message);
    });
  }

  /** Opens a page and waits for nothing. */
  static async open(name: string, url: string): Promise<Browser> {
    const browser = new Browser(name);
    const { targetId } = await browser.#call("Target.createTarget", { url: "about:blank" });
    const attached = await browser.#call("Target.attachToTarget", { targetId, flatten: true });
    browser.#session = String(attached["sessionId"]);
    for (const domain of ["Runtime", "Log", "Page"]) await browser.#call(`${domain}.enable`, {});
    await browser.#call("Page.navigate", { url });
    return browser;
  }

  /** Value of an expression in the page. */
  async evaluate(expression: string): Promise<unknown> {
    const answer = await this.#call("Runtime.evaluate", { expression, returnByValue: true });
    return (answer["result"] as { readonly value?: unknown }).value;
  }

  async close(): Promise<void> {
    const ended = new Promise((resolve) => this.#child.once("close", resolve));
    const { pid } = this.#child;
    if (pid !== undefined) process.kill(-pid, "SIGKILL");
    await ended;
    // Helpers that left the group may still write for a moment.
    await eventually("the profile is removed", async () => {
      try {
        rmSync(this.#profile, { recursive: true, force: true });
        return true;
      } catch {
        return false;
      }
    });
  }

  #call(method: string, params: object): Promise<Record<string, unknown>> {
    const id = this.#nextId++;
    const session = this.#session === "" ? {} : { sessionId: this.#session };
    const text = JSON.stringify({ id, method, params, ...session });
    return new Promise((resolve, reject) => {
      this.#waiting.set(id, ({ result, error }) => {
        if (error === undefined) resolve(result ?? {});
        else reject(new Error(`${method}: ${error.message}`));
      });
      (this.#child.stdio[3] as Writable).write(`${text}\0`);
    });
  }

  #receive(message: Message): void {
    const { id, method, params } = message;
    if (id !== undefined) {
      this.#waiting.get(id)?.(message);
      this.#waiting.delete(id);
    }
    const events = ["Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled"];
    if (method !== undefined && events.includes(method))
      this.complaints.push(JSON.stringify(params));
  }
}
