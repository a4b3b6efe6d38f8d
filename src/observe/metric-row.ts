/** One row of the tables of metrics, and how rows are written down. */

export type MetricKind = "counter" | "gauge" | "histogram";

export interface MetricRow {
  readonly kind: MetricKind;
  /** Full Prometheus name: unit last, counters end in _total. */
  readonly name: string;
  readonly help: string;
  /** One label at most; a row has one cell (or histogram) per value, in this order. */
  readonly label?: string;
  readonly values?: readonly string[];
  /** The row of a gauge that tells how many of the values, from the first, exist now; absent: all. */
  readonly shown?: "nvmeDevices";
}

export function counter(
  name: string,
  help: string,
  label?: string,
  values?: readonly string[],
): MetricRow {
  return row("counter", name, help, label, values);
}

export function gauge(
  name: string,
  help: string,
  label?: string,
  values?: readonly string[],
): MetricRow {
  return row("gauge", name, help, label, values);
}

export function seconds(name: string, help: string): MetricRow {
  return row("histogram", name, help, undefined, undefined);
}

/** A row with one cell for each disk of the NVMe tier. */
export function perDevice(kind: "counter" | "gauge", name: string, help: string): MetricRow {
  return { kind, name, help, label: "device", values: DEVICE_LABELS, shown: "nvmeDevices" };
}

function row(
  kind: MetricKind,
  name: string,
  help: string,
  label: string | undefined,
  values: readonly string[] | undefined,
): MetricRow {
  if (label === undefined || values === undefined) return { kind, name, help };
  return { kind, name, help, label, values };
}

/** As many as `nvme.directories` may name. */
export const DEVICES_MAX = 64;
/** Devices by number, in the order in which they were opened; cairn_nvme_device_info names their directories. */
export const DEVICE_LABELS: readonly string[] = Array.from({ length: DEVICES_MAX }, (_, device) =>
  String(device),
);
