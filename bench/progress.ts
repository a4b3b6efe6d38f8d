/** A progress bar on standard error, drawn only on a terminal, so that standard output stays machine-readable. */
import { assert } from "../src/assert.ts";

const WIDTH = 30;
const DRAW_MS_MIN = 100;

export class Progress {
  readonly #label: string;
  readonly #total: number;
  readonly #enabled: boolean;
  #drawnAtMs = 0;

  constructor(label: string, total: number, enabled = process.stderr.isTTY === true) {
    assert(total >= 0, "a progress total is not negative");
    this.#label = label;
    this.#total = total;
    this.#enabled = enabled;
  }

  update(done: number, note = ""): void {
    if (!this.#enabled) return;
    const nowMs = performance.now();
    if (done < this.#total && nowMs - this.#drawnAtMs < DRAW_MS_MIN) return;
    this.#drawnAtMs = nowMs;
    process.stderr.write(`\r${progressLine(this.#label, done, this.#total, note)}\u001b[K`);
  }

  end(): void {
    if (this.#enabled) process.stderr.write("\r\u001b[K");
  }
}

/** One line of the bar: label, bar, percent, note. */
export function progressLine(label: string, done: number, total: number, note: string): string {
  const share = total === 0 ? 1 : Math.min(1, Math.max(0, done / total));
  const filled = Math.round(share * WIDTH);
  const bar = "█".repeat(filled) + "░".repeat(WIDTH - filled);
  const percent = `${Math.floor(share * 100)}`.padStart(3);
  return `${label} ${bar} ${percent} %${note === "" ? "" : `  ${note}`}`;
}
