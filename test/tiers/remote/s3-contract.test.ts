/** The S3 store against the in-tree server: the contract with unsigned and with signed payloads. */
import { describe } from "vitest";
import { FAKE_KEYS, FAKE_REGION, FakeS3 } from "../../harness/fake-s3.ts";
import { S3Store } from "../../../tiers/remote/s3.ts";
import { storeContract } from "./contract.ts";

describe.each([
  { name: "unsigned payloads, no prefix", signPayload: false, prefix: "" },
  { name: "signed payloads, under a prefix", signPayload: true, prefix: "team.a/kv_cache/" },
])("S3 with $name", ({ signPayload, prefix }) => {
  let fake: FakeS3;
  storeContract(
    async () => {
      fake = await FakeS3.start();
      fake.objects.set("foreign & file", { bytes: new Uint8Array(3), modifiedMs: 1 });
      const open = (): S3Store =>
        new S3Store({
          bucket: fake.bucket,
          prefix,
          region: FAKE_REGION,
          endpoint: fake.endpoint,
          pathStyle: true,
          credentials: FAKE_KEYS,
          signPayload,
          socketsMax: 8,
          idleMs: 10_000,
        });
      return { store: open(), another: open };
    },
    () => fake.stop(),
  );
});
