// One check of a device (check-file.ts), on a thread of its own: calls that wait for a device that hangs must not hold
// one of libuv's few threads, which all file and name look-ups of the daemon share. Plain JavaScript and blocking
// calls: it starts without tsx, and nothing else runs here. Posts { error } ("" when the device did all it was asked).
import { randomBytes } from "node:crypto";
import {
  closeSync,
  constants,
  fsyncSync,
  openSync,
  readSync,
  rmSync,
  statSync,
  writeSync,
} from "node:fs";
import { parentPort, workerData } from "node:worker_threads";

const SECTOR_BYTES = 4_096;
const { O_CREAT, O_DIRECT, O_RDONLY, O_TRUNC, O_WRONLY } = constants;

/** Runs `work` on the open file. */
function within(path, flags, work) {
  const file = openSync(path, flags, 0o600);
  try {
    return work(file);
  } finally {
    closeSync(file);
  }
}

/** O_DIRECT needs aligned memory: a WebAssembly memory begins at a page. */
function readSector(path, flags) {
  const sector = Buffer.from(new WebAssembly.Memory({ initial: 1 }).buffer, 0, SECTOR_BYTES);
  const count = within(path, flags, (file) => readSync(file, sector, 0, SECTOR_BYTES, 0));
  if (count !== SECTOR_BYTES) throw new Error(`short read of ${count} bytes`);
  return sector;
}

/** Without O_DIRECT the page cache answers. */
function readBack(path) {
  try {
    return readSector(path, O_RDONLY | O_DIRECT);
  } catch (error) {
    if (error.code !== "EINVAL") throw error;
    return readSector(path, O_RDONLY);
  }
}

function check(path) {
  const sector = randomBytes(SECTOR_BYTES);
  within(path, O_WRONLY | O_CREAT | O_TRUNC, (file) => {
    writeSync(file, sector, 0, SECTOR_BYTES, 0);
    fsyncSync(file);
  });
  if (!readBack(path).equals(sector)) {
    throw new Error("the device returned another sector than was written");
  }
  rmSync(path, { force: true });
}

let error = "";
try {
  if (workerData.marker !== undefined) statSync(workerData.marker);
  check(workerData.path);
} catch (failure) {
  error = failure.message;
}
parentPort.postMessage({ error });
