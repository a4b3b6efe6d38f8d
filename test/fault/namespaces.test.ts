/** The namespace table of a real pool: clients that come and go, that hold on, and tenants that share it. */
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { type NamespaceDescriptor, OP } from "../../src/engine-api/protocol.ts";
import { decodeCold } from "../../src/engine-api/codec.ts";
import { type TestDaemon, withDaemon } from "../harness/daemon.ts";
import { chainOf, TestEngine } from "../harness/engine.ts";
import { descriptorOf, helloOf } from "../harness/frames.ts";
import { errorName, errorOf, Wire } from "../harness/wire.ts";

const chain = chainOf("namespaces", 16);

function models(prefix: string, count: number): NamespaceDescriptor[] {
  return Array.from({ length: count }, (_unused, index) =>
    descriptorOf({ model: `${prefix}-${index}` }),
  );
}

async function greet(
  socket: string,
  id: string,
  namespaces: NamespaceDescriptor[],
): Promise<[string, Wire]> {
  const wire = await Wire.connect(socket);
  return [errorName(await wire.cold(OP.HELLO, helloOf(id, namespaces))), wire];
}

async function namespacesOf(daemon: TestDaemon): Promise<string[]> {
  const { namespaces } = await daemon.json<{ namespaces: { descriptor: { model: string } }[] }>(
    "/v1/namespaces",
  );
  return namespaces.map(({ descriptor }) => descriptor.model);
}

async function nodeOf(engine: TestEngine): Promise<unknown> {
  const reply = await engine.wire.call({ op: OP.STATS });
  return decodeCold(reply.body)["node"];
}

function accountOf(tenant: string, blocks: number, usedBytes: number): object {
  return { tenant, tiers: [{ tier: "dram", blocks, usedBytes }] };
}

describe("a full namespace table", () => {
  it("is used again where engines are gone and no block is left, and blocks keep theirs", async () => {
    await withDaemon({ ledger: { namespacesMax: 8 } }, async (daemon) => {
      const honest = await TestEngine.start(daemon.socket, { engineId: "honest" });
      await honest.store(chain);
      honest.close();
      for (let round = 0; round < 20; round++) {
        const [answer, wire] = await greet(daemon.socket, "passing", models(`round-${round}`, 7));
        expect(answer).toBe("none");
        wire.close();
        await daemon.settles("instances", 0);
      }
      const known = await namespacesOf(daemon);
      expect(known).toHaveLength(8);
      expect(known.filter((name) => name.startsWith("round-19-"))).toHaveLength(7);
      await daemon.stop("SIGKILL");
      await daemon.launch();
      const later = await TestEngine.start(daemon.socket, { engineId: "later" });
      expect(await later.read(chain)).toMatchObject({ landed: 16, wrong: 0 });
      expect(await namespacesOf(daemon)).toEqual(known);
      later.close();
    });
  });

  it("refuses what an engine that is there would lose, and serves it again once that is gone", async () => {
    await withDaemon({ ledger: { namespacesMax: 8 } }, async (daemon) => {
      const [first, holder] = await greet(daemon.socket, "holder", models("held", 8));
      expect(first).toBe("none");
      const [second, refused] = await greet(daemon.socket, "second", models("more", 1));
      expect(second).toBe("tooManyNamespaces");
      const [third] = await greet(daemon.socket, "third", models("held", 2));
      expect(third).toBe("none");
      holder.close();
      await daemon.settles("instances", 1);
      expect(errorName(await refused.cold(OP.HELLO, helloOf("second", models("more", 6))))).toBe(
        "none",
      );
      const [fourth] = await greet(daemon.socket, "fourth", models("other", 1));
      expect(fourth).toBe("tooManyNamespaces");
    });
  });

  it("gives a row that was emptied away, and who comes back finds nothing of its earlier blocks", async () => {
    await withDaemon({ ledger: { namespacesMax: 1 } }, async (daemon) => {
      for (const model of ["first", "second", "first"]) {
        const engine = await TestEngine.start(daemon.socket, {
          engineId: model,
          descriptor: { model },
        });
        expect(await engine.read(chain)).toMatchObject({ hit: 0 });
        await engine.store(chain);
        expect(await engine.read(chain)).toMatchObject({ landed: 16, wrong: 0 });
        expect((await greet(daemon.socket, "early", models("early", 1)))[0]).toBe(
          "tooManyNamespaces",
        );
        for (const key of chain.toReversed()) {
          const dropped = await engine.wire.cold(OP.HINT, { namespace: 1, key, kind: "drop" });
          expect(errorName(dropped)).toBe("none");
        }
        engine.close();
        await daemon.settles("tierBlocks", 0);
        await daemon.settles("instances", 0);
      }
      await daemon.stop("SIGKILL");
      await daemon.launch();
      const last = await TestEngine.start(daemon.socket, { descriptor: { model: "second" } });
      expect(await last.read(chain)).toMatchObject({ hit: 0 });
      last.close();
    });
  });
});

describe("tenants", () => {
  it("see their own accounts in STATS, and nothing of what others hold", async () => {
    await withDaemon({}, async (daemon) => {
      const whole = await TestEngine.start(daemon.socket, { engineId: "alone" });
      await whole.store(chain);
      expect(await nodeOf(whole)).toMatchObject({ tier: "dram", blocks: 16 });
      whole.close();
      const one = join(daemon.directory, "one.sock");
      await daemon.stop();
      daemon.configure({ tenants: [{ name: "one", socket: one }] });
      await daemon.launch();
      const engine = await TestEngine.start(one, { engineId: "one" });
      expect(await nodeOf(engine)).toEqual(accountOf("one", 0, 0));
      await engine.store(chain.slice(0, 3));
      expect(await nodeOf(engine)).toEqual(accountOf("one", 3, 3 * engine.rowBytes));
      const common = await TestEngine.start(daemon.socket, { engineId: "common" });
      expect(await nodeOf(common)).toEqual(accountOf("default", 16, 16 * common.rowBytes));
    });
  });

  it("have a share each: one that uses up its own leaves the others theirs, and is told so", async () => {
    await withDaemon({}, async (probe) => {
      const one = join(probe.directory, "one.sock");
      await probe.stop();
      probe.configure({
        ledger: { namespacesMax: 8, namespacesPerTenantMax: 4 },
        tenants: [{ name: "one", socket: one }],
      });
      await probe.launch();
      const [first] = await greet(one, "greedy", models("one", 4));
      expect(first).toBe("none");
      const wire = await Wire.connect(one);
      const answer = await wire.cold(OP.HELLO, helloOf("more", models("more", 1)));
      expect(errorOf(answer)).toMatchObject({ name: "tooManyNamespaces", detail: 4 });
      expect(errorOf(answer).message).toContain('tenant "one"');
      const [other] = await greet(probe.socket, "other", models("default", 4));
      expect(other).toBe("none");
    });
  });
});
