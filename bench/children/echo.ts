/** Native echo: answers every `requestBytes` with `replyBytes` until its client leaves. */
import { loadAddon } from "../../addon/load.ts";
import { childAnswer, childInput } from "../children.ts";

export interface EchoInput {
  readonly path: string;
  readonly requestBytes: number;
  readonly replyBytes: number;
}

const input = childInput<EchoInput>();
loadAddon().benchEcho(input.path, input.requestBytes, input.replyBytes);
childAnswer(null);
