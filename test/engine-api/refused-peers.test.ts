/** What the daemon's log says of engines that it would not have. */
import { describe, expect, it } from "vitest";
import { RefusedPeers } from "../../src/engine-api/refused-peers.ts";
import { CairnError } from "../../src/errors.ts";
import { LIMITS } from "../../src/limits.ts";
import { Harness, RawClient } from "./support.ts";

const PEER = { uid: 7, pid: 1 };
const DENIED = new CairnError("notPermitted", "no tenant");

function fixture(): { peers: RefusedPeers; lines: string[]; clock: { now: number } } {
  const lines: string[] = [];
  const clock = { now: 0 };
  return {
    peers: new RefusedPeers(
      (line) => lines.push(line),
      () => clock.now,
    ),
    lines,
    clock,
  };
}

describe("refusals in the log", () => {
  it("says a refusal once, and again after the silence", () => {
    const { peers, lines, clock } = fixture();
    peers.connection(PEER, DENIED);
    clock.now = LIMITS.refusedPeerSilenceMs - 1;
    peers.connection({ uid: 7, pid: 2 }, DENIED);
    expect(lines).toEqual(["refused a connection of uid 7: notPermitted: no tenant (pid 1)"]);
    clock.now += 1;
    peers.connection(PEER, DENIED);
    expect(lines).toHaveLength(2);
  });

  it("says so many different ones, then none until the first are old", () => {
    const { peers, lines, clock } = fixture();
    for (let uid = 0; uid < 2 * LIMITS.refusedPeersSaidMax; uid++) {
      peers.connection({ uid, pid: 1 }, DENIED);
    }
    expect(lines).toHaveLength(LIMITS.refusedPeersSaidMax);
    clock.now = LIMITS.refusedPeerSilenceMs;
    peers.connection({ uid: 1_000, pid: 1 }, DENIED);
    expect(lines).toHaveLength(LIMITS.refusedPeersSaidMax + 1);
  });

  it("does not report a stop of its own as somebody's fault", () => {
    const { peers, lines } = fixture();
    peers.connection(PEER, new CairnError("shuttingDown", "the daemon is draining"));
    expect(lines).toEqual([]);
  });

  it("names engine id, uid and error of a HELLO that a daemon refused", async () => {
    const harness = await new Harness().start();
    const client = new RawClient(harness.socket);
    try {
      for (let attempt = 0; attempt < 3; attempt++) {
        const { error } = await client.hello("mine\n", { namespaces: [] });
        expect(error?.errorName).toBe("malformedFrame");
      }
      const said = harness.lines.filter((line) => line.startsWith("refused HELLO"));
      expect(said).toHaveLength(1);
      expect(said[0]).toContain(`engine id "mine\\n", uid ${process.getuid?.()}: malformedFrame`);
    } finally {
      client.close();
      await harness.stop();
    }
  });
});
