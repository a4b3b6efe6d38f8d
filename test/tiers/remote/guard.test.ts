/** Breaker, retry budget and the guard that uses them. */
import { describe, expect, test } from "vitest";
import {
  Breaker,
  BREAKER_TABLE,
  type BreakerEvent,
  type BreakerState,
} from "../../../tiers/remote/breaker.ts";
import {
  GUARD_DEFAULTS,
  GuardedStore,
  type GuardOptions,
  RetryBudget,
  retryDelayMs,
} from "../../../tiers/remote/guarded-store.ts";
import { isChunkName } from "../../../tiers/remote/chunk.ts";
import {
  type CallLimits,
  type Fault,
  FAULT_NAMES,
  failure,
  FAULTS,
  type ObjectInfo,
  type ObjectStore,
  type Outcome,
  success,
} from "../../../tiers/remote/object-store.ts";

const STATES: readonly BreakerState[] = ["closed", "open", "halfOpen"];
const EVENTS: readonly BreakerEvent[] = ["success", "fault", "elapsed", "trialLost"];

describe("the breaker", () => {
  test("goes from each state by each event where its table says", () => {
    const rows = STATES.flatMap((state) =>
      EVENTS.flatMap((event) =>
        [false, true].map((tripped) => {
          return `${state} ${event}${tripped ? " tripped" : ""} ${BREAKER_TABLE[state][event](tripped)}`;
        }),
      ),
    );
    expect(rows).toEqual([
      "closed success closed",
      "closed success tripped closed",
      "closed fault closed",
      "closed fault tripped open",
      "closed elapsed closed",
      "closed elapsed tripped closed",
      "closed trialLost closed",
      "closed trialLost tripped closed",
      "open success open",
      "open success tripped open",
      "open fault open",
      "open fault tripped open",
      "open elapsed halfOpen",
      "open elapsed tripped halfOpen",
      "open trialLost open",
      "open trialLost tripped open",
      "halfOpen success closed",
      "halfOpen success tripped closed",
      "halfOpen fault open",
      "halfOpen fault tripped open",
      "halfOpen elapsed halfOpen",
      "halfOpen elapsed tripped halfOpen",
      "halfOpen trialLost halfOpen",
      "halfOpen trialLost tripped halfOpen",
    ]);
  });

  function breaker(): { readonly breaker: Breaker; readonly at: { now: number } } {
    const at = { now: 0 };
    return {
      at,
      breaker: new Breaker({ faultsMax: 3, openMs: 100, openMsMax: 300, now: () => at.now }),
    };
  }

  test("opens after faults in a row, tries once after its time, and closes on success", () => {
    const { breaker: one, at } = breaker();
    for (let fault = 0; fault < 3; fault += 1) one.ended(one.admit(), "fault");
    expect(one.state).toBe("open");
    expect(one.admit()).toBe("refused");
    at.now = 100;
    expect(one.admit()).toBe("trial");
    expect(one.admit()).toBe("refused");
    one.ended("trial", "success");
    expect(one.state).toBe("closed");
    one.ended(one.admit(), "fault");
    expect(one.state).toBe("closed");
    expect(one.opened).toBe(1);
  });

  test("a success between faults begins the count anew", () => {
    const { breaker: one } = breaker();
    for (const event of ["fault", "fault", "success", "fault", "fault"] as const) {
      one.ended(one.admit(), event);
    }
    expect(one.state).toBe("closed");
  });

  test("each failed trial doubles the wait up to its bound, a lost one lets the next call try", () => {
    const { breaker: one, at } = breaker();
    for (let fault = 0; fault < 3; fault += 1) one.ended(one.admit(), "fault");
    for (const waitMs of [100, 200, 300, 300]) {
      at.now += waitMs - 1;
      expect(one.admit()).toBe("refused");
      at.now += 1;
      one.ended(one.admit(), "fault");
    }
    at.now += 300;
    one.ended(one.admit(), "trialLost");
    one.ended(one.admit(), "success");
    expect([one.state, one.opened]).toEqual(["closed", 5]);
    for (let fault = 0; fault < 3; fault += 1) one.ended(one.admit(), "fault");
    at.now += 100;
    expect(one.admit()).toBe("trial");
  });

  test("calls that began before it opened prove nothing when they end", () => {
    const { breaker: one } = breaker();
    const early = one.admit();
    for (let fault = 0; fault < 3; fault += 1) one.ended(one.admit(), "fault");
    one.ended(early, "success");
    expect(one.state).toBe("open");
  });
});

describe("the retry budget", () => {
  test("is spent by retries, twice as fast by timeouts, and filled by successes up to its bound", () => {
    const budget = new RetryBudget(3, 0.5);
    expect(budget.take("timeout")).toBe(true);
    expect(budget.take("timeout")).toBe(false);
    expect(budget.take("unavailable")).toBe(true);
    expect(budget.take("unavailable")).toBe(false);
    for (let count = 0; count < 20; count += 1) budget.succeeded();
    expect(budget.tokens).toBe(3);
  });

  test("delays have full jitter under an exponential bound", () => {
    const delays = (random: number): number[] =>
      [0, 1, 2, 3, 9].map((retry) =>
        retryDelayMs(retry, {
          ...GUARD_DEFAULTS,
          delayBaseMs: 50,
          delayMaxMs: 300,
          random: () => random,
        }),
      );
    expect(delays(0)).toEqual([0, 0, 0, 0, 0]);
    expect(delays(1)).toEqual([50, 100, 200, 300, 300]);
  });
});

/** A store whose head() follows a script, and whose put() and delete() say what they are told; the rest is not asked. */
class Scripted implements ObjectStore {
  readonly description = "scripted";
  readonly script: Outcome<ObjectInfo>[];
  calls = 0;
  putAnswer: Outcome<"stored" | "present"> = success("stored");
  deleteAnswer: Outcome<"deleted" | "missing"> = success("deleted");
  readonly puts: string[] = [];
  readonly deletes: string[] = [];
  readonly deadlines: number[] = [];

  constructor(script: Outcome<ObjectInfo>[]) {
    this.script = script;
  }

  head(_name: string, limits: CallLimits): Promise<Outcome<ObjectInfo>> {
    this.deadlines.push(limits.deadlineMs);
    const step = this.script[Math.min(this.calls, this.script.length - 1)] as Outcome<ObjectInfo>;
    this.calls += 1;
    return Promise.resolve(step);
  }
  get(): never {
    throw new Error("not asked");
  }
  put(name: string): Promise<Outcome<"stored" | "present">> {
    this.puts.push(name);
    return Promise.resolve(this.putAnswer);
  }
  list(): never {
    throw new Error("not asked");
  }
  delete(name: string): Promise<Outcome<"deleted" | "missing">> {
    this.deletes.push(name);
    return Promise.resolve(this.deleteAnswer);
  }
  check(): Promise<Outcome<"reachable">> {
    return Promise.resolve(success("reachable"));
  }
  sweep(): never {
    throw new Error("not asked");
  }
  close(): Promise<void> {
    return Promise.resolve();
  }
}

const INFO = success<ObjectInfo>({ bytes: 1, modifiedMs: 1 });
const LONG = { deadlineMs: 10_000 };

function guarded(script: Outcome<ObjectInfo>[], options: Partial<GuardOptions> = {}) {
  const store = new Scripted(script);
  return { store, guard: new GuardedStore(store, { random: () => 0, ...options }) };
}

describe("a guarded store", () => {
  test("retries exactly the faults whose row says that a retry helps", async () => {
    for (const fault of FAULT_NAMES) {
      const { store, guard } = guarded([failure(fault, "scripted"), INFO]);
      const outcome = await guard.head("a", LONG);
      expect([fault, store.calls, outcome.ok]).toEqual([
        fault,
        FAULTS[fault].retry ? 2 : 1,
        FAULTS[fault].retry,
      ]);
      expect(guard.counters().faults[fault]).toBe(1);
    }
  });

  test("gives up after its attempts and says what the last one said", async () => {
    const { store, guard } = guarded([failure("unavailable", "down")], { attemptsMax: 3 });
    expect(await guard.head("a", LONG)).toMatchObject({ fault: "unavailable", message: "down" });
    expect(store.calls).toBe(3);
    expect(guard.counters()).toMatchObject({ calls: 1, retries: 2 });
  });

  test("under lasting faults the budget ends the retries, then the breaker the calls", async () => {
    const { store, guard } = guarded([failure("unavailable", "down")], {
      budgetTokens: 4,
      breakerFaultsMax: 10,
    });
    const outcomes: (Fault | undefined)[] = [];
    for (let call = 0; call < 12; call += 1) {
      const outcome = await guard.head("a", LONG);
      outcomes.push(outcome.ok ? undefined : outcome.fault);
    }
    // 4 retries were paid for, then one attempt a call; after 10 attempts nothing is asked any more.
    expect(store.calls).toBe(10);
    expect(guard.counters()).toMatchObject({ retries: 4, breakerOpened: 1 });
    expect(guard.counters().retriesDenied).toBeGreaterThan(0);
    expect(outcomes.slice(-3)).toEqual(["open", "open", "open"]);
    expect(guard.breakerState).toBe("open");
  });

  test("a store that only lacks the object, or is full, is not down", async () => {
    for (const fault of ["missing", "short", "full", "cancelled", "busy"] as const) {
      const { guard } = guarded([failure(fault, "scripted")], { breakerFaultsMax: 2 });
      for (let call = 0; call < 10; call += 1) await guard.head("a", LONG);
      expect(guard.breakerState).toBe("closed");
    }
  });

  test("never hands a buffer that is still written to to a second attempt", async () => {
    const stuck = failure("timeout", "stuck", new Promise<void>(() => undefined));
    const { store, guard } = guarded([stuck, INFO]);
    expect(await guard.head("a", LONG)).toBe(stuck);
    expect(store.calls).toBe(1);
  });

  test("does not begin a retry that the deadline leaves no time for", async () => {
    const { store, guard } = guarded([failure("throttled", "slow down"), INFO], {
      random: () => 1,
      delayBaseMs: 60_000,
      delayMaxMs: 60_000,
    });
    expect(await guard.head("a", LONG)).toMatchObject({ fault: "throttled" });
    expect(store.calls).toBe(1);
  });

  test("gives each attempt its own deadline within the call's", async () => {
    const { store, guard } = guarded([failure("unavailable", "once"), INFO], {
      attemptDeadlineMs: 70,
      now: () => 0,
    });
    await guard.head("a", LONG);
    await guard.head("a", { deadlineMs: 5 });
    expect(store.deadlines).toEqual([70, 70, 5]);
  });

  test("a signal that fires between attempts ends the call", async () => {
    const abort = new AbortController();
    const { store, guard } = guarded([failure("unavailable", "once"), INFO], {
      random: () => {
        abort.abort();
        return 0.5;
      },
    });
    const outcome = await guard.head("a", { deadlineMs: 10_000, signal: abort.signal });
    expect(outcome).toMatchObject({ fault: "cancelled" });
    expect(store.calls).toBe(1);
  });
});

describe("a store that reads and does not store", () => {
  const BODY = new Uint8Array(16);

  function writing(options: Partial<GuardOptions> = {}) {
    const at = { now: 0 };
    const lines: string[] = [];
    const made = guarded([INFO], {
      writeProbeMs: 100,
      writeProbeMsMax: 400,
      attemptsMax: 1,
      now: () => at.now,
      log: (line) => lines.push(line),
      ...options,
    });
    const put = (): Promise<Outcome<"stored" | "present">> => made.guard.put("a", BODY, LONG);
    return { ...made, at, lines, put };
  }

  test.each(["refused", "full"] as const)(
    "is read-only after one PUT that is %s; no further one is sent, and reads pass",
    async (fault) => {
      const { store, guard, put, lines } = writing({ breakerFaultsMax: 1 });
      store.putAnswer = failure(fault, "not here");
      expect(await put()).toMatchObject({ fault });
      expect([guard.readOnly, guard.breakerState]).toEqual([true, "closed"]);
      for (let call = 0; call < 20; call += 1) expect(await put()).toMatchObject({ fault: "open" });
      expect(store.puts).toEqual(["a"]);
      expect((await guard.head("a", LONG)).ok).toBe(true);
      expect(guard.lastFault).toBe(`${fault}: not here`);
      expect(guard.counters()).toMatchObject({ readOnlyTurns: 1, faults: { open: 20 } });
      expect(lines).toEqual([`remote: scripted: ok → readOnly (${fault}: not here)`]);
    },
  );

  test("is read-only after PUTs in a row that fail otherwise, also where reads between them succeed", async () => {
    const { store, guard, put } = writing({ breakerFaultsMax: 3 });
    store.putAnswer = failure("unavailable", "EIO");
    for (let call = 0; call < 3; call += 1) {
      expect(guard.readOnly).toBe(false);
      await put();
      expect((await guard.head("a", LONG)).ok).toBe(true);
    }
    expect([guard.readOnly, guard.breakerState]).toEqual([true, "closed"]);
  });

  test("one object stored between faults begins their count anew; one that was there before does not", async () => {
    const { store, guard, put } = writing({ breakerFaultsMax: 3 });
    const answers = ["unavailable", "unavailable", "stored", "unavailable", "present"] as const;
    for (const answer of [...answers, "unavailable"] as const) {
      store.putAnswer = answer === "unavailable" ? failure(answer, "EIO") : success(answer);
      await put();
      expect(guard.readOnly).toBe(false);
    }
    store.putAnswer = failure("unavailable", "EIO");
    await put();
    expect(guard.readOnly).toBe(true);
  });

  test("what this process refused itself says nothing about the store", async () => {
    const { store, guard, put } = writing({ breakerFaultsMax: 1 });
    for (const fault of ["busy", "cancelled"] as const) {
      store.putAnswer = failure(fault, "here");
      await put();
    }
    expect(guard.readOnly).toBe(false);
  });

  test("is asked by a small object at doubling intervals, and takes objects again when that was stored", async () => {
    const { store, guard, put, at, lines } = writing();
    store.putAnswer = failure("refused", "EROFS");
    await put();
    let probes = 0;
    for (const waitMs of [100, 200, 400, 400]) {
      at.now += waitMs - 1;
      await guard.probe(LONG);
      expect(store.puts).toHaveLength(1 + probes);
      at.now += 1;
      await guard.probe(LONG);
      probes += 1;
      expect(store.puts).toHaveLength(1 + probes);
      expect(guard.readOnly).toBe(true);
    }
    store.putAnswer = success("stored");
    at.now += 400;
    await guard.probe(LONG);
    expect(guard.readOnly).toBe(false);
    const probed = store.puts.slice(1);
    expect(new Set(probed).size).toBe(5);
    expect(store.deletes).toEqual(probed.slice(-1));
    expect(probed.every((name) => isChunkName(name))).toBe(true);
    expect(guard.counters()).toMatchObject({ readOnlyTurns: 1, writeProbesFailed: 4 });
    expect(lines.at(-1)).toBe("remote: scripted: readOnly → ok");
    await guard.probe(LONG);
    expect(store.puts).toHaveLength(6);
    expect(await put()).toMatchObject({ value: "stored" });
  });

  test("has its intervals double on while probes succeed and PUTs do not, until one PUT does", async () => {
    const { store, guard, put, at } = writing();
    const round = async (waitMs: number): Promise<void> => {
      store.putAnswer = failure("full", "no room for a chunk");
      await put();
      expect(guard.readOnly).toBe(true);
      store.putAnswer = success("stored");
      at.now += waitMs - 1;
      await guard.probe(LONG);
      expect(guard.readOnly).toBe(true);
      at.now += 1;
      await guard.probe(LONG);
      expect(guard.readOnly).toBe(false);
    };
    for (const waitMs of [100, 200, 400]) await round(waitMs);
    await put();
    await round(100);
  });

  test("may refuse to delete, which makes it neither read-only nor down", async () => {
    const { store, guard } = writing({ breakerFaultsMax: 1 });
    store.deleteAnswer = failure("refused", "no permission to delete");
    for (let call = 0; call < 3; call += 1) {
      expect(await guard.delete("a", LONG)).toMatchObject({ fault: "refused" });
    }
    expect([guard.readOnly, guard.breakerState]).toEqual([false, "closed"]);
  });

  test("that is away as well is asked for itself first, then for its writes in the same moment", async () => {
    const { store, guard, put, at, lines } = writing({ breakerFaultsMax: 2, breakerOpenMs: 50 });
    store.putAnswer = failure("unavailable", "away");
    await put();
    await put();
    expect([guard.readOnly, guard.breakerState]).toEqual([true, "open"]);
    await guard.probe(LONG);
    expect(store.puts).toHaveLength(2);
    at.now = 100;
    store.putAnswer = success("stored");
    await guard.probe(LONG);
    expect([guard.readOnly, guard.breakerState]).toEqual([false, "closed"]);
    expect(lines.map((line) => line.replace(/ \(.*/, ""))).toEqual([
      "remote: scripted: ok → fenced",
      "remote: scripted: fenced → readOnly",
      "remote: scripted: readOnly → ok",
    ]);
  });
});
