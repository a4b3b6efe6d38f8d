/** The daemon's HTTP side over its Unix socket, and single figures of its metrics. */
import { request } from "node:http";
import { join } from "node:path";
import type { TestDaemon } from "./support.ts";

/** One request to the daemon's HTTP side. */
export async function ask(
  daemon: TestDaemon,
  method: string,
  path: string,
  body?: object,
): Promise<string> {
  const socketPath = join(daemon.directory, "edge.sock");
  const headers = { host: "localhost", "content-type": "application/json" };
  return new Promise<string>((resolve, reject) => {
    const asked = request({ socketPath, path, method, headers }, (answer) => {
      let text = "";
      answer.on("data", (part: Buffer) => {
        text += part.toString();
      });
      answer.on("end", () => {
        if (answer.statusCode === 200) resolve(text);
        else reject(new Error(`${answer.statusCode}: ${text}`));
      });
    });
    asked.on("error", reject);
    asked.end(body === undefined ? undefined : JSON.stringify(body));
  });
}

/** One figure of the metrics page, summed over its labels; 0 when the series is not there. */
export async function metric(daemon: TestDaemon, name: string): Promise<number> {
  const text = await ask(daemon, "GET", "/metrics");
  const lines = text.split("\n").filter((line) => line.startsWith(name));
  return lines.reduce((sum, line) => sum + Number(line.split(" ").at(-1)), 0);
}
