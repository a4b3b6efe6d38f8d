/**
 * Says in the log which engines the daemon would not have, and why: an engine that is refused goes on without its
 * cache, and tries again every few seconds for as long as it lives. So each refusal is said once in a while, and of
 * many different ones only so many are.
 */
import { LIMITS } from "../limits.ts";
import { decodeCold } from "./codec.ts";
import type { InboundFrame } from "./context.ts";
import { asCairnError } from "./outbound.ts";
import type { Connection } from "./sessions.ts";

export class RefusedPeers {
  readonly #warn: (line: string) => void;
  readonly #now: () => number;
  /** What was said, and when, monotonic milliseconds; the oldest first. */
  readonly #said = new Map<string, number>();

  constructor(warn: (line: string) => void, now: () => number) {
    this.#warn = warn;
    this.#now = now;
  }

  /** A HELLO was answered with an error. */
  hello(frame: InboundFrame, error: unknown): void {
    const { uid, pid } = frame.connection;
    const who = `HELLO of engine id ${engineIdOf(frame)}, uid ${uid}`;
    this.#say(who, pid, error);
  }

  /** A connection was not accepted. */
  connection({ uid, pid }: Pick<Connection, "uid" | "pid">, error: unknown): void {
    this.#say(`a connection of uid ${uid}`, pid, error);
  }

  #say(who: string, pid: number, error: unknown): void {
    const { errorName, message } = asCairnError(error);
    if (errorName === "shuttingDown") return;
    const line = `refused ${who}: ${errorName}: ${message}`;
    const now = this.#now();
    for (const [text, at] of this.#said) {
      if (now - at < LIMITS.refusedPeerSilenceMs) break;
      this.#said.delete(text);
    }
    if (this.#said.has(line) || this.#said.size >= LIMITS.refusedPeersSaidMax) return;
    this.#said.set(line, now);
    this.#warn(`${line} (pid ${pid})`);
  }
}

/** As a JSON string: it is the peer's text. */
function engineIdOf(frame: InboundFrame): string {
  try {
    const { engineId } = decodeCold(frame.coldBody());
    return typeof engineId === "string" ? JSON.stringify(engineId.slice(0, 256)) : "unknown";
  } catch {
    return "unknown";
  }
}
