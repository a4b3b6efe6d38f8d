/** Sealed chunks in S3, by MinIO. */
import { sealingOn } from "./real-server.ts";

sealingOn("minio");
