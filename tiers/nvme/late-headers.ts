/**
 * Headers that wait for their parents while several disks are read at once. When the last of those disks has been read
 * to its end, or failed, all are offered in order of depth, over all disks; what lacks its parent then is refused.
 */
import { SLOT_HEADER } from "../../addon/binding.ts";
import type { Ledger } from "../../src/ledger/ledger.ts";
import { LIMITS } from "../../src/limits.ts";
import type { Device } from "./device.ts";

interface Late {
  readonly device: Device;
  /** One record of the scan. */
  readonly words: Uint32Array;
}

export type AdoptHeader = (
  device: Device,
  ledger: Ledger,
  words: Uint32Array,
  at: number,
) => boolean;

export class LateHeaders {
  readonly #ledger: () => Ledger;
  readonly #adopt: AdoptHeader;
  /** Disks being read. */
  #reading = 0;
  #late: Late[] = [];
  #settled: Promise<ReadonlyMap<Device, number>> | undefined;
  #settle: (adopted: Promise<ReadonlyMap<Device, number>>) => void = () => undefined;

  constructor(ledger: () => Ledger, adopt: AdoptHeader) {
    this.#ledger = ledger;
    this.#adopt = adopt;
  }

  /** A disk is going to be read. */
  begin(): void {
    this.#reading += 1;
  }

  /** Parents may yet come from other disks. */
  get open(): boolean {
    return this.#reading > 1 || this.#late.length > 0;
  }

  /** By disk, how many of the headers kept until now were taken; undefined when none is kept. */
  get settled(): Promise<ReadonlyMap<Device, number>> | undefined {
    return this.#settled;
  }

  /** False: too many wait. */
  keep(device: Device, words: Uint32Array): boolean {
    if (this.#late.length >= LIMITS.nvmeLateHeadersMax) return false;
    this.#late.push({ device, words });
    this.#settled ??= new Promise((resolve) => {
      this.#settle = resolve;
    });
    return true;
  }

  /** begin()'s disk has been read, or could not be. */
  readEnded(): void {
    this.#reading -= 1;
    if (this.#reading > 0 || this.#settled === undefined) return;
    const late = this.#late;
    const settle = this.#settle;
    this.#late = [];
    this.#settled = undefined;
    settle(this.#offer(late));
  }

  async #offer(late: readonly Late[]): Promise<ReadonlyMap<Device, number>> {
    const ledger = this.#ledger();
    const adopted = new Map<Device, number>();
    let until = performance.now() + LIMITS.nvmeSliceMs;
    for (const { device, words } of late.toSorted((one, other) => depthOf(one) - depthOf(other))) {
      const taken = !device.closed && this.#adopt(device, ledger, words, 0);
      if (taken) adopted.set(device, (adopted.get(device) ?? 0) + 1);
      if (performance.now() < until) continue;
      ledger.flush();
      await new Promise((resolve) => {
        setImmediate(resolve);
      });
      until = performance.now() + LIMITS.nvmeSliceMs;
    }
    ledger.flush();
    return adopted;
  }
}

function depthOf({ words }: Late): number {
  return words[SLOT_HEADER.DEPTH]!;
}
