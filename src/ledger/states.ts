/**
 * The life of one copy, that is of one (block, tier), as a table of state × event.
 *
 *   absent → reserved → filling → landed → visible → absent
 *                          ↓         ↓↑       ↓↑
 *                       draining    orphan (invisible, slot kept, first to be evicted)
 *
 * quarantined holds the slot of a copy that proved wrong while copy jobs still read from it. Anything that
 * is not in the table is a bug and fails an assertion.
 */
import { assert } from "../assert.ts";
import { STATE, type State } from "./types.ts";

export const EVENT = {
  /** A slot is held for the first shard. */
  RESERVE: 0,
  /** A shard's copy starts. */
  START: 1,
  /** Every shard is complete. */
  LAND: 2,
  /** The parent is visible (or there is none): the copy may be read. */
  SHOW: 3,
  /** The parent is gone: the copy may not be read. */
  HIDE: 4,
  /** Given up, no copy job in flight. */
  ABORT: 5,
  /** Given up while a copy job still writes into a slot. */
  DRAIN: 6,
  /** The last copy job of a draining copy ended. */
  DRAINED: 7,
  /** Let go by the eviction policy (rule 2). */
  EVICT: 8,
  /** Lost: corrupt or fenced, nobody reads it. */
  LOSE: 9,
  /** Lost while copy jobs read from the slot. */
  QUARANTINE: 10,
  /** The last reader of a quarantined slot ended. */
  RELEASE: 11,
} as const;
export type Event = (typeof EVENT)[keyof typeof EVENT];
export const EVENT_COUNT = 12;
export const STATE_COUNT = 8;
export const ILLEGAL = 255;

const { ABSENT, RESERVED, FILLING, LANDED, VISIBLE, ORPHAN, DRAINING, QUARANTINED } = STATE;

/** Every legal move: [state, event, next state]. */
export const MOVES: readonly (readonly [State, Event, State])[] = [
  [ABSENT, EVENT.RESERVE, RESERVED],
  [RESERVED, EVENT.START, FILLING],
  [FILLING, EVENT.START, FILLING],
  [FILLING, EVENT.LAND, LANDED],
  [LANDED, EVENT.SHOW, VISIBLE],
  [ORPHAN, EVENT.SHOW, VISIBLE],
  [LANDED, EVENT.HIDE, ORPHAN],
  [VISIBLE, EVENT.HIDE, ORPHAN],
  [RESERVED, EVENT.ABORT, ABSENT],
  [FILLING, EVENT.ABORT, ABSENT],
  [LANDED, EVENT.ABORT, ABSENT],
  [FILLING, EVENT.DRAIN, DRAINING],
  [DRAINING, EVENT.DRAINED, ABSENT],
  [VISIBLE, EVENT.EVICT, ABSENT],
  [ORPHAN, EVENT.EVICT, ABSENT],
  [LANDED, EVENT.LOSE, ABSENT],
  [VISIBLE, EVENT.LOSE, ABSENT],
  [ORPHAN, EVENT.LOSE, ABSENT],
  [LANDED, EVENT.QUARANTINE, QUARANTINED],
  [VISIBLE, EVENT.QUARANTINE, QUARANTINED],
  [ORPHAN, EVENT.QUARANTINE, QUARANTINED],
  [QUARANTINED, EVENT.RELEASE, ABSENT],
];

const table = new Uint8Array(STATE_COUNT * EVENT_COUNT).fill(ILLEGAL);
for (const [state, event, next] of MOVES) table[state * EVENT_COUNT + event] = next;

/** The state after `event`. Throws AssertionFailure when the table has no such move. */
export function nextState(state: State, event: Event): State {
  const next = table[state * EVENT_COUNT + event];
  assert(next !== undefined && next !== ILLEGAL, "illegal move in the (block, tier) state table");
  return next as State;
}

/** Reserved, filling or landed: on its way to being visible. */
export function isPending(state: number): boolean {
  return state >= STATE.RESERVED && state <= STATE.LANDED;
}

/** Counts as a live child of its parent (rule 2): pending or visible. */
export function isLive(state: number): boolean {
  return state >= STATE.RESERVED && state <= STATE.VISIBLE;
}

/** All shards are in the tier: landed, visible or orphan. */
export function isComplete(state: number): boolean {
  return state >= STATE.LANDED && state <= STATE.ORPHAN;
}
