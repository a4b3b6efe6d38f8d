/**
 * A process that stores objects in a shared directory. usage: directory-writer.ts DIRECTORY NAME SEED BYTES COUNT
 * Says "ready", waits for a line, stores NAME (or NAME-0 … when COUNT > 1, for ever when COUNT is 0), and says what
 * each put answered.
 */
import { once } from "node:events";
import { SharedDirectory } from "../../../tiers/remote/shared-directory.ts";
import { bytesFor } from "./directory-bytes.ts";

const [, , directory, name, seed, bytes, count] = process.argv;
const store = new SharedDirectory({ directory: directory ?? "" });
const body = bytesFor(Number(bytes), Number(seed));
process.stdout.write("ready\n");
await once(process.stdin, "data");
const rounds = Number(count) === 0 ? Number.POSITIVE_INFINITY : Number(count);
for (let round = 0; round < rounds; round += 1) {
  const own = rounds === 1 ? (name ?? "") : `${name}-${round}`;
  const outcome = await store.put(own, body, { deadlineMs: 60_000 });
  process.stdout.write(`${outcome.ok ? outcome.value : outcome.fault}\n`);
}
process.exit(0);
