/** Sealed chunks in S3, by the in-tree server. */
import { S3Store } from "../../../tiers/remote/s3.ts";
import { FAKE_KEYS, FAKE_REGION, FakeS3 } from "../../harness/fake-s3.ts";
import { sealingSuite } from "./sealing-suite.ts";

let fake: FakeS3;
sealingSuite(
  async () => {
    fake = await FakeS3.start();
    const open = (): S3Store =>
      new S3Store({
        bucket: fake.bucket,
        prefix: "",
        region: FAKE_REGION,
        endpoint: fake.endpoint,
        pathStyle: true,
        credentials: FAKE_KEYS,
        signPayload: false,
        socketsMax: 8,
        idleMs: 10_000,
      });
    return { store: open(), another: open() };
  },
  () => fake.stop(),
);
