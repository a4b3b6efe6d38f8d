/** Sealed chunks in a shared directory. */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { SharedDirectory } from "../../../tiers/remote/shared-directory.ts";
import { sealingSuite } from "./sealing-suite.ts";

let directory: string;
sealingSuite(
  async () => {
    directory = await mkdtemp(join(tmpdir(), "cairn-sealed-"));
    return {
      store: new SharedDirectory({ directory }),
      another: new SharedDirectory({ directory }),
    };
  },
  () => rm(directory, { recursive: true }),
);
