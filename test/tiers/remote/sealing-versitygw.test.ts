/** Sealed chunks in S3, by versitygw. */
import { sealingOn } from "./real-server.ts";

sealingOn("versitygw");
