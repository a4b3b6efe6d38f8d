/** A disk that keeps whoever checks it: the daemon serves on with all its threads, and can be stopped. */
import { execFileSync } from "node:child_process";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { expect, it } from "vitest";
import { CHECK_FILE } from "../../tiers/nvme/check-file.ts";
import { ALWAYS, chainsOf, DISK_FAULT, withDiskNode } from "../harness/disk-node.ts";
import { eventually } from "../harness/eventually.ts";

/** Some thread of the process waits for the other end of a pipe: the kernel says in which of its functions. */
function waitsForPipe(pid: number): boolean {
  const tasks = `/proc/${pid}/task`;
  return readdirSync(tasks).some((task) =>
    readFileSync(`${tasks}/${task}/wchan`, "utf8").includes("wait_for_partner"),
  );
}

const chains = chainsOf("check", 2, 8);

it("a check that hangs stops neither stores nor loads, nor the end of the daemon", async () => {
  await withDiskNode({}, async (node) => {
    node.armFaults();
    await node.daemon.launch();
    await node.storeDurably(chains);
    // A pipe that nobody reads keeps whoever opens it for writing.
    execFileSync("mkfifo", [join(node.disk, CHECK_FILE)]);
    node.fault(DISK_FAULT.FAIL_SYNC, ALWAYS);
    const more = chainsOf("more", 2, 8);
    await node.store(more);
    await eventually("the disk is read-only", () => node.daemon.log().includes("ok → readOnly"));
    await eventually("the disk is being checked", () => waitsForPipe(node.daemon.pid));
    expect(await node.read([...chains, ...more])).toMatchObject({ landed: 32, wrong: 0 });
    expect(await node.daemon.stop()).toEqual({ code: null, signal: "SIGKILL" });
    // The reason is the last that is heard of it.
    expect(node.daemon.log().trim().split("\n").at(-1)).toContain("does not answer its check");
  });
});
