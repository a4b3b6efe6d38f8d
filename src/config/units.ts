/** Sizes, durations and file modes as people write them. Each parser returns undefined for what it cannot read. */

const BYTE_UNITS: Readonly<Record<string, number>> = {
  "": 1,
  b: 1,
  kib: 2 ** 10,
  mib: 2 ** 20,
  gib: 2 ** 30,
  tib: 2 ** 40,
  kb: 1e3,
  mb: 1e6,
  gb: 1e9,
  tb: 1e12,
};
const MS_UNITS: Readonly<Record<string, number>> = {
  "": 1,
  ms: 1,
  s: 1_000,
  m: 60_000,
  h: 3_600_000,
  d: 86_400_000,
};

function scaled(text: string, units: Readonly<Record<string, number>>): number | undefined {
  const match = /^\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*$/i.exec(text);
  if (match === null) return undefined;
  const unit = units[match[2]!.toLowerCase()];
  if (unit === undefined) return undefined;
  const value = Number(match[1]) * unit;
  return Number.isSafeInteger(value) ? value : undefined;
}

/** Bytes of `64GiB`, `1.5 TB`, `4096`. */
export function parseBytes(text: string): number | undefined {
  return scaled(text, BYTE_UNITS);
}

/** Milliseconds of `2s`, `500ms`, `1.5m`, `30d`, `250`. */
export function parseMilliseconds(text: string): number | undefined {
  return scaled(text, MS_UNITS);
}

/** A file mode is octal however it is written: `0660`, `0o660`, `660`. */
export function parseMode(text: string): number | undefined {
  const match = /^\s*(?:0o)?([0-7]{3,4})\s*$/.exec(text);
  return match === null ? undefined : Number.parseInt(match[1]!, 8);
}

const BYTE_STEPS = ["B", "KiB", "MiB", "GiB", "TiB"] as const;

/** `68719476736` → `64 GiB`; at most one decimal. */
export function formatBytes(bytes: number): string {
  let value = bytes;
  let step = 0;
  while (Math.abs(value) >= 1_024 && step < BYTE_STEPS.length - 1) {
    value /= 1_024;
    step += 1;
  }
  return `${Number(value.toFixed(1))} ${BYTE_STEPS[step]}`;
}

/** Seconds as a reader wants them: `850 ns`, `12.4 µs`, `3.1 ms`, `2 s`. */
export function formatSeconds(seconds: number): string {
  if (seconds === 0) return "0 s";
  for (const [unit, scale] of [
    ["s", 1],
    ["ms", 1e-3],
    ["µs", 1e-6],
  ] as const) {
    if (seconds >= scale) return `${Number((seconds / scale).toPrecision(3))} ${unit}`;
  }
  return `${Math.round(seconds * 1e9)} ns`;
}
