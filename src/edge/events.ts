/**
 * /v1/events: server-sent events. Each client has a bounded queue, the bytes its socket has not taken yet;
 * past the bound it is cut off and counted, never waited for. A browser reconnects by itself and gets the
 * history afresh.
 *
 * Events: `history` once (digests of the last minutes), then `digest` each second, `blocks` (changes of
 * visibility: counts, and the newest few), `notice` (rare things worth a glance).
 */
import type { ServerResponse } from "node:http";
import { CairnError } from "../errors.ts";
import { LIMITS } from "../limits.ts";
import type { BlockEvent, LedgerReader, Notice } from "./contract.ts";
import type { Digests } from "./digest.ts";
import type { EdgeMetrics } from "./prometheus.ts";

/** Unsent bytes a client may have; a digest is about 2 KiB, so this is minutes behind. */
export const CLIENT_QUEUE_BYTES_MAX = 256 * 1_024;
const NOTICES_MAX = 50;
/** Log entries read per tick; the others wait for the next, or are counted as lost. */
const LOG_READ_MAX = 8_192;
const BLOCKS_SHOWN_MAX = 24;

export interface StampedNotice extends Notice {
  readonly atMs: number;
}

export class EventHub {
  private readonly clients = new Set<ServerResponse>();
  private readonly notices: StampedNotice[] = [];
  private readonly digests: Digests;
  private readonly metrics: EdgeMetrics;
  private readonly reader: LedgerReader | undefined;
  private sequence: number;

  constructor(digests: Digests, metrics: EdgeMetrics, reader: LedgerReader | undefined) {
    this.digests = digests;
    this.metrics = metrics;
    this.reader = reader;
    this.sequence = reader?.head() ?? 0;
  }

  get size(): number {
    return this.clients.size;
  }

  /** Takes over a response whose headers are sent. throws overloaded (before anything is written). */
  admit(): void {
    if (this.clients.size >= LIMITS.sseClientsMax)
      throw new CairnError("overloaded", `sseClientsMax (${LIMITS.sseClientsMax}) clients listen`);
  }

  join(response: ServerResponse): void {
    this.clients.add(response);
    this.metrics.eventClients.set(this.clients.size);
    response.on("close", () => {
      this.clients.delete(response);
      this.metrics.eventClients.set(this.clients.size);
    });
    this.write(
      response,
      frame("history", { digests: this.digests.history, notices: this.notices }),
    );
  }

  notice(atMs: number, notice: Notice): void {
    const stamped = { atMs, ...notice };
    this.notices.push(stamped);
    if (this.notices.length > NOTICES_MAX) this.notices.shift();
    this.broadcast("notice", stamped);
  }

  /** Once a second. */
  tick(atMs: number): void {
    this.broadcast("digest", this.digests.tick(atMs));
    this.readLog(atMs);
  }

  close(): void {
    for (const client of this.clients) client.destroy();
    this.clients.clear();
  }

  private readLog(atMs: number): void {
    if (this.reader === undefined) return;
    const { events, next, lost } = this.reader.read(this.sequence, LOG_READ_MAX);
    this.sequence = next;
    if (lost > 0) this.metrics.logEntriesLost.inc(lost);
    if (events.length === 0 && lost === 0) return;
    this.broadcast("blocks", { atMs, lost, ...summary(events) });
  }

  private broadcast(event: string, data: unknown): void {
    if (this.clients.size === 0) return;
    const text = frame(event, data);
    for (const client of this.clients) this.write(client, text);
  }

  private write(client: ServerResponse, text: string): void {
    if (client.writableLength + text.length > CLIENT_QUEUE_BYTES_MAX && client.writableLength > 0) {
      this.metrics.eventClientsCut.inc();
      this.clients.delete(client);
      client.destroy();
      return;
    }
    client.write(text);
  }
}

function frame(event: string, data: unknown): string {
  return `event: ${event}\ndata: ${JSON.stringify(data)}\n\n`;
}

function summary(events: readonly BlockEvent[]): {
  readonly stored: number;
  readonly removed: number;
  readonly newest: readonly BlockEvent[];
} {
  const stored = events.filter(({ kind }) => kind === "stored").length;
  return { stored, removed: events.length - stored, newest: events.slice(-BLOCKS_SHOWN_MAX) };
}
