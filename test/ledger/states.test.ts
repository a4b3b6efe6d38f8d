import { expect, test } from "vitest";
import { AssertionFailure } from "../../src/assert.ts";
import {
  EVENT,
  EVENT_COUNT,
  isComplete,
  isLive,
  isPending,
  MOVES,
  nextState,
  STATE_COUNT,
  type Event,
} from "../../src/ledger/states.ts";
import { STATE, type State } from "../../src/ledger/types.ts";

/** The whole table, written out a second time: rows are states, columns events, "-" is illegal. */
const EXPECTED: Record<keyof typeof STATE, string> = {
  //            reserve start land show hide abort drain drained evict lose quarantine release
  ABSENT: "RESERVED - - - - - - - - - - -",
  RESERVED: "- FILLING - - - ABSENT - - - - - -",
  FILLING: "- FILLING LANDED - - ABSENT DRAINING - - - - -",
  LANDED: "- - - VISIBLE ORPHAN ABSENT - - - ABSENT QUARANTINED -",
  VISIBLE: "- - - - ORPHAN - - - ABSENT ABSENT QUARANTINED -",
  ORPHAN: "- - - VISIBLE - - - - ABSENT ABSENT QUARANTINED -",
  DRAINING: "- - - - - - - ABSENT - - - -",
  QUARANTINED: "- - - - - - - - - - - ABSENT",
};

const names = Object.keys(STATE) as (keyof typeof STATE)[];

test("every state answers every event as the table says, and every other move is an assertion failure", () => {
  let legal = 0;
  for (const name of names) {
    const row = EXPECTED[name].split(" ");
    expect(row).toHaveLength(EVENT_COUNT);
    row.forEach((next, event) => {
      const move = (): State => nextState(STATE[name], event as Event);
      if (next === "-") expect(move, `${name} × ${event}`).toThrow(AssertionFailure);
      else {
        legal += 1;
        expect(move(), `${name} × ${event}`).toBe(STATE[next as keyof typeof STATE]);
      }
    });
  }
  expect(legal).toBe(MOVES.length);
  expect(names).toHaveLength(STATE_COUNT);
  expect(Object.keys(EVENT)).toHaveLength(EVENT_COUNT);
});

test("every state can be reached from absent and leads back to absent", () => {
  const reach = (from: State, forward: boolean): Set<State> => {
    const seen = new Set<State>([from]);
    for (let grew = true; grew; ) {
      grew = false;
      for (const [state, , next] of MOVES) {
        const [a, b] = forward ? [state, next] : [next, state];
        if (!seen.has(a) || seen.has(b)) continue;
        seen.add(b);
        grew = true;
      }
    }
    return seen;
  };
  expect(reach(STATE.ABSENT, true).size).toBe(STATE_COUNT);
  expect(reach(STATE.ABSENT, false).size).toBe(STATE_COUNT);
});

test("pending, live and complete split the states as the rules use them", () => {
  const where = (accepts: (state: number) => boolean): string[] =>
    names.filter((name) => accepts(STATE[name]));
  expect(where(isPending)).toEqual(["RESERVED", "FILLING", "LANDED"]);
  expect(where(isLive)).toEqual(["RESERVED", "FILLING", "LANDED", "VISIBLE"]);
  expect(where(isComplete)).toEqual(["LANDED", "VISIBLE", "ORPHAN"]);
});
