/**
 * Asks a device whether it works: a sector of a small file of its own is written with new content, synced, and read
 * back past the page cache's copy where the file system allows it. Nothing of the tier's is touched.
 *
 * A device that hangs keeps whoever asks it. So each check has a thread of its own (check-worker.mjs), and neither the
 * event loop nor libuv's pool waits. (A child process would do as well, but to fork a process with gigabytes of tables
 * takes the event loop some 60 ms for each.)
 */
import { join } from "node:path";
import { Worker } from "node:worker_threads";
import { underWay } from "../under-way.ts";

export const CHECK_FILE = "check.cairn";
/** Names the directory and holds its lock (addon/disk_file.h). */
const DIRECTORY_FILE = "directory.cairn";

/**
 * Resolves when the device did all three; a device that hangs lets it wait. `known`: only in a directory that the tier
 * has used before. @throws Error that says what failed
 */
export async function checkDevice(directory: string, known = false): Promise<void> {
  const marker = known ? join(directory, DIRECTORY_FILE) : undefined;
  const complaint = `${directory} does not answer its check`;
  await underWay(complaint, runCheck(join(directory, CHECK_FILE), marker));
}

function runCheck(path: string, marker: string | undefined): Promise<void> {
  return new Promise<void>((resolve, reject) => {
    const worker = new Worker(new URL("check-worker.mjs", import.meta.url), {
      workerData: { path, marker },
      execArgv: [],
    });
    worker.unref();
    worker.once("message", ({ error }: { readonly error: string }) => {
      if (error === "") resolve();
      else reject(new Error(error));
    });
    worker.once("error", reject);
    worker.once("exit", () => reject(new Error("the check ended without an answer")));
  });
}
