/** Small ext4 file systems of a test's own, in a file on a loop device; where mounting is permitted. */
import { execFileSync, spawnSync } from "node:child_process";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { eventually } from "./eventually.ts";

const MIB = 2 ** 20;

/** EXT4_IOC_SHUTDOWN with EXT4_GOING_FLAGS_NOLOGFLUSH: nothing in memory reaches the disk any more. */
const SHUTDOWN = `
import fcntl, os, struct, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
fcntl.ioctl(fd, 0x8004587d, struct.pack("I", 2))
`;

export class SmallFileSystem {
  readonly mountPoint: string;
  readonly #scratch = mkdtempSync(join(tmpdir(), "cairn-mount-"));
  readonly #image: string;

  /** Throws where mounting is not permitted. */
  constructor(sizeBytes: number) {
    this.#image = join(this.#scratch, "image");
    this.mountPoint = join(this.#scratch, "mount");
    mkdirSync(this.mountPoint);
    writeFileSync(this.#image, "");
    truncateSync(this.#image, sizeBytes);
    execFileSync("mkfs.ext4", ["-q", "-F", "-m", "0", this.#image], { stdio: "pipe" });
    this.mount();
  }

  mount(how: "rw" | "ro" = "rw"): void {
    const options = `loop,errors=remount-ro,${how}`;
    execFileSync("mount", ["-o", options, this.#image, this.mountPoint], { stdio: "pipe" });
  }

  /** What a power cut leaves: all that was not synced is gone. The file system answers EIO until it is mounted anew. */
  cutPower(): void {
    execFileSync("python3", ["-c", SHUTDOWN, this.mountPoint], { stdio: "pipe" });
  }

  /** The kernel lets go of a killed process's ring a moment after the process is gone. */
  async unmount(): Promise<void> {
    await eventually("the file system is unmounted", () => {
      return spawnSync("umount", [this.mountPoint]).status === 0;
    });
  }

  /** Writes a file until there is no room left; removes nothing. */
  fill(name: string): string {
    const path = join(this.mountPoint, name);
    for (const pieceBytes of [MIB, 4_096]) {
      try {
        for (;;) writeFileSync(path, Buffer.alloc(pieceBytes, 1), { flag: "a" });
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code !== "ENOSPC") throw error;
      }
    }
    return path;
  }

  /** The kernel's own test of an ext4 error: the file system turns read-only. */
  turnReadOnly(): void {
    const mounts = readFileSync("/proc/self/mounts", "utf8").split("\n");
    const line = mounts.find((one) => one.split(" ")[1] === this.mountPoint) ?? "";
    const device = line.split(" ")[0]!.replace("/dev/", "");
    writeFileSync(`/sys/fs/ext4/${device}/trigger_fs_error`, "1");
  }

  remove(): void {
    spawnSync("umount", ["-l", this.mountPoint]);
    rmSync(this.#scratch, { recursive: true, force: true });
  }
}

/** Why file systems cannot be mounted here; undefined when they can. */
export function mountRefusal(): string | undefined {
  if (!existsSync("/dev/loop-control")) return "no loop devices";
  try {
    new SmallFileSystem(16 * MIB).remove();
    return undefined;
  } catch (error) {
    return String(error).split("\n")[0];
  }
}
