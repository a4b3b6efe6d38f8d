/**
 * The worker's side of the question channel. Each question has a number and a deadline; at most
 * `ASKED_MAX` are open at once, so that a wedged main thread turns into typed refusals, not into memory.
 */
import { assert } from "../assert.ts";
import { CairnError } from "../errors.ts";
import type { EdgeAnswers, EdgeKind, EdgeRequest, ErrorReply } from "./contract.ts";
import { ReplyError } from "./replies.ts";

export const ASKED_MAX = 64;
/** A config change may resize the pool, which copies live slots. */
const DEADLINE_MS: Readonly<Record<EdgeKind, number>> = {
  ping: 2_000,
  snapshot: 5_000,
  config: 5_000,
  explain: 5_000,
  configPut: 120_000,
};

interface Asked {
  readonly resolve: (value: never) => void;
  readonly reject: (error: CairnError) => void;
  readonly timer: NodeJS.Timeout;
}

export type Ask = <K extends EdgeKind>(
  request: Extract<EdgeRequest, { readonly kind: K }>,
) => Promise<EdgeAnswers[K]>;

export class Asker {
  private readonly asked = new Map<number, Asked>();
  private readonly post: (id: number, request: EdgeRequest) => void;
  private nextId = 1;

  constructor(post: (id: number, request: EdgeRequest) => void) {
    this.post = post;
  }

  /** throws overloaded, deadlineExceeded, or what the daemon's handler threw. */
  readonly ask: Ask = (request) =>
    new Promise((resolve, reject) => {
      if (this.asked.size >= ASKED_MAX) {
        reject(new CairnError("overloaded", `${ASKED_MAX} questions to the daemon are open`));
        return;
      }
      const id = this.nextId++;
      const milliseconds = DEADLINE_MS[request.kind];
      const timer = setTimeout(() => {
        this.asked.delete(id);
        const message = `the daemon did not answer "${request.kind}" in ${milliseconds} ms`;
        reject(new CairnError("deadlineExceeded", message));
      }, milliseconds);
      this.asked.set(id, { resolve, reject, timer });
      this.post(id, request);
    });

  answer(id: number, value: unknown): void {
    const asked = this.take(id);
    asked?.resolve(value as never);
  }

  refuse(id: number, error: ErrorReply): void {
    this.take(id)?.reject(new ReplyError(error));
  }

  /** Every open question ends; the edge is stopping. */
  close(): void {
    for (const id of this.asked.keys())
      this.refuse(id, { name: "shuttingDown", message: "the edge is stopping", detail: 0 });
    assert(this.asked.size === 0, "questions left open after close");
  }

  private take(id: number): Asked | undefined {
    const asked = this.asked.get(id);
    this.asked.delete(id);
    if (asked !== undefined) clearTimeout(asked.timer);
    return asked;
  }
}
