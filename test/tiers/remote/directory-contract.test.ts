/** The shared directory: the contract, and what a directory of files adds to it. */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe } from "vitest";
import { SharedDirectory } from "../../../tiers/remote/shared-directory.ts";
import { storeContract } from "./contract.ts";

describe("the shared directory", () => {
  let directory: string;
  storeContract(
    async () => {
      directory = await mkdtemp(join(tmpdir(), "cairn-remote-"));
      const open = (): SharedDirectory => new SharedDirectory({ directory });
      return { store: open(), another: open };
    },
    () => rm(directory, { recursive: true }),
  );
});
