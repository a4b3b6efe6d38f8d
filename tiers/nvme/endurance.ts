/**
 * Flash wears by bytes written. A budget of bytes a day is kept by a token bucket that holds at most one hour's
 * worth, so that a burst is possible and a day is not used up by one; the bytes written are counted by day, and
 * the drive's life is estimated from them. All of it survives a restart (index-store.ts, meta entry).
 */
import { assert } from "../../src/assert.ts";

const DAY_MS = 86_400_000;
const BURST_SHARE = 1 / 24;

/** Persisted; times in milliseconds of Unix time. */
export interface EnduranceState {
  readonly writtenBytes: number;
  readonly tokens: number;
  readonly atMs: number;
  readonly dayStartMs: number;
  readonly todayBytes: number;
  readonly yesterdayBytes: number;
}

export interface EnduranceSnapshot {
  /** Ever, as far as this directory remembers. */
  readonly writtenBytes: number;
  /** Bytes a day at the present rate: the last full day where there is one, else what today amounts to. */
  readonly bytesPerDay: number;
  /** 0 = no budget. */
  readonly budgetBytesPerDay: number;
  /** Rated bytes left / rate; undefined without a rating or without writes. */
  readonly lifeDays: number | undefined;
}

export class Endurance {
  budgetBytesPerDay: number;
  #ratedBytes: number;
  #writtenBytes = 0;
  #tokens: number;
  #atMs: number;
  #dayStartMs: number;
  #todayBytes = 0;
  #yesterdayBytes = 0;
  /** Whether a whole day was counted. */
  #fullDay = false;

  /** budgetBytesPerDay and ratedBytes: 0 = none. */
  constructor(budgetBytesPerDay: number, ratedBytes: number, nowMs: number) {
    this.budgetBytesPerDay = budgetBytesPerDay;
    this.#ratedBytes = ratedBytes;
    this.#tokens = budgetBytesPerDay * BURST_SHARE;
    this.#atMs = nowMs;
    this.#dayStartMs = nowMs;
  }

  /** What was written counts on; a budget that is new begins with an hour's worth. */
  configure(budgetBytesPerDay: number, ratedBytes: number): void {
    const most = budgetBytesPerDay * BURST_SHARE;
    this.#tokens = this.budgetBytesPerDay === 0 ? most : Math.min(this.#tokens, most);
    this.budgetBytesPerDay = budgetBytesPerDay;
    this.#ratedBytes = ratedBytes;
  }

  /** Takes back what an earlier life wrote; a state that makes no sense is ignored. */
  restore(state: Partial<EnduranceState>, nowMs: number): void {
    const { writtenBytes, tokens, atMs, dayStartMs, todayBytes, yesterdayBytes } = state;
    const values = [writtenBytes, tokens, atMs, dayStartMs, todayBytes, yesterdayBytes];
    if (!values.every((value) => typeof value === "number" && Number.isFinite(value))) return;
    if (atMs! > nowMs || dayStartMs! > nowMs || writtenBytes! < 0) return;
    this.#writtenBytes = writtenBytes!;
    this.#tokens = Math.min(tokens!, this.budgetBytesPerDay * BURST_SHARE);
    this.#atMs = atMs!;
    this.#dayStartMs = dayStartMs!;
    this.#todayBytes = todayBytes!;
    this.#yesterdayBytes = yesterdayBytes!;
    this.#fullDay = yesterdayBytes! > 0;
    this.#advance(nowMs);
  }

  state(): EnduranceState {
    return {
      writtenBytes: this.#writtenBytes,
      tokens: this.#tokens,
      atMs: this.#atMs,
      dayStartMs: this.#dayStartMs,
      todayBytes: this.#todayBytes,
      yesterdayBytes: this.#yesterdayBytes,
    };
  }

  /** These bytes went to the device. The bucket may become negative: writes in flight are not called back. */
  wrote(bytes: number, nowMs: number): void {
    assert(bytes >= 0, "bytes written do not shrink");
    this.#advance(nowMs);
    this.#writtenBytes += bytes;
    this.#todayBytes += bytes;
    if (this.budgetBytesPerDay > 0) this.#tokens -= bytes;
  }

  /** Bytes that may be written now; Infinity without a budget. */
  allowanceBytes(nowMs: number): number {
    if (this.budgetBytesPerDay === 0) return Number.POSITIVE_INFINITY;
    this.#advance(nowMs);
    return Math.max(0, Math.floor(this.#tokens));
  }

  snapshot(nowMs: number): EnduranceSnapshot {
    this.#advance(nowMs);
    const elapsedMs = Math.max(1, nowMs - this.#dayStartMs);
    const today = (this.#todayBytes * DAY_MS) / Math.max(elapsedMs, DAY_MS / 24);
    const bytesPerDay = Math.round(this.#fullDay ? this.#yesterdayBytes : today);
    const left = this.#ratedBytes - this.#writtenBytes;
    const rated = this.#ratedBytes > 0 && bytesPerDay > 0;
    return {
      writtenBytes: this.#writtenBytes,
      bytesPerDay,
      budgetBytesPerDay: this.budgetBytesPerDay,
      lifeDays: rated ? Math.max(0, left / bytesPerDay) : undefined,
    };
  }

  #advance(nowMs: number): void {
    if (nowMs > this.#atMs) {
      const filled = ((nowMs - this.#atMs) / DAY_MS) * this.budgetBytesPerDay;
      this.#tokens = Math.min(this.budgetBytesPerDay * BURST_SHARE, this.#tokens + filled);
      this.#atMs = nowMs;
    }
    const days = Math.floor((nowMs - this.#dayStartMs) / DAY_MS);
    if (days < 1) return;
    this.#yesterdayBytes = days === 1 ? this.#todayBytes : 0;
    this.#todayBytes = 0;
    this.#dayStartMs += days * DAY_MS;
    this.#fullDay = true;
  }
}
