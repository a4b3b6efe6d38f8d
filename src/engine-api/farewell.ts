/**
 * What a client is told when the transport closes its connection: one error frame of operation 0 and tag 0, made
 * once at start, because the transport thread that sees the fault never waits for this one.
 */
import { CLOSE_REASON, type TransportOptions } from "../../addon/binding.ts";
import type { ErrorName } from "../errors.ts";
import { coldFrame, errorBody } from "./codec.ts";
import { FLAG } from "./protocol.ts";

const REASONS: readonly (readonly [reason: number, name: ErrorName, message: string])[] = [
  [CLOSE_REASON.BAD_MAGIC, "badMagic", "the bytes do not start a frame; the connection is closed"],
  [CLOSE_REASON.FRAME_TOO_LARGE, "frameTooLarge", "the connection is closed"],
  [CLOSE_REASON.FRAME_TIMEOUT, "frameTimeout", "the connection is closed"],
  [CLOSE_REASON.HELLO_TIMEOUT, "helloRequired", "no HELLO in time; the connection is closed"],
  [CLOSE_REASON.VERSION, "versionUnsupported", "the connection is closed"],
];

function errorFrame(name: ErrorName, message: string): Uint8Array {
  return coldFrame(0, FLAG.REPLY | FLAG.ERROR, 0, 0, 0, errorBody(name, message, 0));
}

export function farewellFrames(): Pick<Required<TransportOptions>, "farewells" | "refusal"> {
  const farewells: (Uint8Array | undefined)[] = [];
  for (const [reason, name, message] of REASONS) farewells[reason] = errorFrame(name, message);
  return { farewells, refusal: errorFrame("tooManyConnections", "the connection is closed") };
}
