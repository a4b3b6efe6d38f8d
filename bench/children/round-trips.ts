/** Native blocking client: round-trip times of one frame over a Unix socket, to the daemon or to the echo. */
import { loadAddon } from "../../addon/load.ts";
import { childAnswer, childInput } from "../children.ts";

export interface RoundTripsInput {
  readonly path: string;
  /** Frames in base64; an empty hello is not sent. */
  readonly hello: string;
  readonly request: string;
  readonly replyBytes: number;
  readonly count: number;
}

const input = childInput<RoundTripsInput>();
const bytes = (text: string): Uint8Array => new Uint8Array(Buffer.from(text, "base64"));
const times = loadAddon().benchRoundTrips(
  input.path,
  bytes(input.hello),
  bytes(input.request),
  input.replyBytes,
  input.count,
);
childAnswer([...times]);
