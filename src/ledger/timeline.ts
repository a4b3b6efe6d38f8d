/**
 * Wall time beside logical time. Ages are logical, so that they cost a counter and never run backwards; what
 * is written into headers and indexes is milliseconds. The caller notes the time now and then; between two
 * notes both run in proportion. So an age becomes a time and the time the same age again, within one process
 * and, through recovery, across two, and what was used later never looks older.
 */
import { assert } from "../assert.ts";

/** Recovered ages take the first part of logical time, [1, AGES_RECOVERED]. */
export const AGES_RECOVERED = 2 ** 30;
/** Milliseconds of one tick where nothing else is known: 50 days for all recovered ages. */
const MILLISECONDS_PER_TICK = 4;
const NOTES_MAX = 256;
/** Notes nearer than this to the one before replace it. */
const APART_MILLISECONDS = 1_000;

export class Timeline {
  /** Rising in both; of equal length. */
  #ticks: number[] = [];
  #times: number[] = [];

  /** At logical time `tick` it was `milliseconds`. A clock that was set back is not believed until it has caught up. */
  note(tick: number, milliseconds: number): void {
    const last = this.#ticks.length - 1;
    assert(tick >= 0 && Number.isFinite(milliseconds), "a note has a tick and a time");
    if (last < 0) {
      this.#ticks.push(0);
      this.#times.push(milliseconds - tick * MILLISECONDS_PER_TICK);
    } else if (milliseconds <= this.#times[last]! || tick <= this.#ticks[last]!) return;
    const near = last > 1 && milliseconds - this.#times[last - 1]! < APART_MILLISECONDS;
    if (near) {
      this.#ticks[last] = tick;
      this.#times[last] = milliseconds;
      return;
    }
    this.#ticks.push(tick);
    this.#times.push(milliseconds);
    if (this.#ticks.length > NOTES_MAX) this.#thin();
  }

  /** Recovery gave the first `ticks` ticks to the times from `least` to `most`. */
  recovered(least: number, most: number, ticks: number): void {
    assert(ticks >= 1 && most >= least, "recovered times are in order");
    this.#ticks = [1, ticks];
    this.#times = [least, most];
  }

  /** Age for a time of last use: from 1 up to the tick of the last note. */
  ageOf(milliseconds: number): number {
    if (this.#ticks.length === 0) this.note(AGES_RECOVERED, milliseconds);
    return Math.max(1, Math.floor(between(this.#times, this.#ticks, milliseconds)));
  }

  /** Time of last use for an age, in milliseconds; the inverse of ageOf(). */
  timeOf(age: number): number {
    if (this.#ticks.length === 0) return 0;
    return between(this.#ticks, this.#times, age);
  }

  /** All ages were halved. */
  halve(): void {
    this.#ticks = this.#ticks.map((tick) => tick / 2);
  }

  #thin(): void {
    const last = this.#ticks.length - 1;
    const keep = (_: number, i: number): boolean => i % 2 === 0 || i === last;
    this.#ticks = this.#ticks.filter(keep);
    this.#times = this.#times.filter(keep);
  }
}

/** The value at `x` of the line through (from[i], to[i]), both rising; the end values beyond the ends. */
function between(from: readonly number[], to: readonly number[], x: number): number {
  const last = from.length - 1;
  if (x <= from[0]!) return to[0]!;
  if (x >= from[last]!) return to[last]!;
  let low = 0;
  let high = last;
  while (high - low > 1) {
    const middle = (low + high) >>> 1;
    if (from[middle]! <= x) low = middle;
    else high = middle;
  }
  const width = from[high]! - from[low]!;
  const share = width === 0 ? 0 : (x - from[low]!) / width;
  return to[low]! + share * (to[high]! - to[low]!);
}
