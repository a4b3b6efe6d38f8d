/** Rows of the namespace table: shared out by tenant, held by instances, used again when nothing needs them. */
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import fc from "fast-check";
import {
  type NamespaceBounds,
  Namespaces,
  namespacesPerTenant,
} from "../../src/engine-api/namespaces.ts";
import { CairnError } from "../../src/errors.ts";
import type { NamespaceOptions } from "../../src/ledger/types.ts";
import { LIMITS } from "../../src/limits.ts";
import { descriptor } from "../e2e/support.ts";

/** A ledger that counts records where the test says so, and a table of `bytesMax` bytes. */
class Fake {
  readonly rows: { digest: Uint8Array; descriptor: Uint8Array }[] = [];
  readonly options: NamespaceOptions[] = [];
  readonly records = new Map<number, number>();
  readonly placed: number[] = [];
  bytesMax = Number.POSITIVE_INFINITY;

  readonly ledger = {
    addNamespace: (options: NamespaceOptions): number => this.options.push(options) - 1,
    replaceNamespace: (index: number, options: NamespaceOptions): void => {
      expect(this.records.get(index) ?? 0).toBe(0);
      this.options[index] = options;
    },
    recordsIn: (index: number): number => this.records.get(index) ?? 0,
  };

  slotsPerSlab(): number {
    return 1;
  }

  putNamespace(index: number, digest: Uint8Array, text: Uint8Array): void {
    let bytes = 24 + text.byteLength;
    for (const [other, row] of this.rows.entries()) {
      if (other !== index) bytes += 24 + row.descriptor.byteLength;
    }
    if (bytes > this.bytesMax) throw Object.assign(new Error("full"), { code: "ENOSPC" });
    this.rows[index] = { digest: digest.slice(), descriptor: text.slice() };
  }

  namespaces(bounds: NamespaceBounds, tenants = ["default"]): Namespaces {
    const index = new Map(tenants.map((name, at) => [name, at]));
    const made = new Namespaces(this.ledger, this, bounds, index, (namespace) => {
      this.placed.push(namespace.index);
    });
    made.settled = () => true;
    return made;
  }
}

function model(name: string, tenant = "default"): [string, ReturnType<typeof descriptor>] {
  return [tenant, descriptor({ model: name, chunkBlocks: 16 })];
}

function refusal(act: () => unknown): CairnError {
  try {
    act();
  } catch (error) {
    expect(error).toBeInstanceOf(CairnError);
    return error as CairnError;
  }
  throw new Error("it was not refused");
}

let fake: Fake;
beforeEach(() => {
  fake = new Fake();
});
afterEach(() => {
  for (const row of fake.rows) expect(row.digest.byteLength).toBe(16);
});

describe("a full table", () => {
  it("gives the row that was used least recently to the next namespace", () => {
    const all = fake.namespaces({ namespacesMax: 3, perTenantMax: 3 });
    const [a, b, c] = ["a", "b", "c"].map((name) => all.open(...model(name)));
    all.hold(a!);
    all.release(a!);
    const d = all.open(...model("d"));
    expect(d.index).toBe(b!.index);
    expect(all.list.map(({ descriptor: { model: name } }) => name)).toEqual(["a", "d", "c"]);
    expect(all.at(1)).toBe(d);
    expect(all.open(...model("b")).index).toBe(c!.index);
    expect(fake.placed).toEqual([0, 1, 2, 1, 2]);
    expect(d.recovered).toBe(false);
    expect(all.open(...model("d"))).toBe(d);
  });

  it("keeps rows that an instance holds, that a record names, and all while blocks may come back", () => {
    const all = fake.namespaces({ namespacesMax: 2, perTenantMax: 2 });
    const a = all.open(...model("a"));
    all.hold(a);
    const b = all.open(...model("b"));
    fake.records.set(b.index, 1);
    expect(refusal(() => all.open(...model("c"))).errorName).toBe("tooManyNamespaces");
    fake.records.set(b.index, 0);
    all.settled = () => false;
    expect(refusal(() => all.open(...model("c"))).errorName).toBe("tooManyNamespaces");
    all.settled = () => true;
    expect(all.open(...model("c")).index).toBe(b.index);
    all.release(a);
    expect(() => all.release(a)).toThrow(/who held it/);
    expect(() => all.hold(b)).toThrow(/another namespace/);
  });

  it("of bytes gives a row away that is as long as the new one", () => {
    const all = fake.namespaces({ namespacesMax: 16, perTenantMax: 16 });
    const short = all.open(...model("s"));
    const long = all.open(...model("l".repeat(500)));
    fake.bytesMax = fake.rows.reduce((sum, row) => sum + 24 + row.descriptor.byteLength, 0);
    const next = all.open(...model("n".repeat(400)));
    expect(next.index).toBe(long.index);
    expect(all.at(0)).toBe(short);
    expect(refusal(() => all.open(...model("x".repeat(600)))).errorName).toBe("tooManyNamespaces");
  });

  it("is read back after rows were given away", () => {
    const all = fake.namespaces({ namespacesMax: 2, perTenantMax: 2 });
    for (const name of ["a", "b", "c", "d", "e"]) all.open(...model(name));
    const again = new Fake();
    const back = again.namespaces({ namespacesMax: 2, perTenantMax: 2 });
    expect(back.restore(fake.rows.map((row, index) => ({ index, ...row })))).toBe(true);
    expect(back.list.map((each) => each.descriptor.model)).toEqual(["e", "d"]);
  });
});

describe("a tenant's share", () => {
  const tenants = ["default", "one", "two"];

  it("is the bound of the error that names the tenant, and leaves the others theirs", () => {
    const all = fake.namespaces({ namespacesMax: 4, perTenantMax: 2 }, tenants);
    const held = ["a", "b"].map((name) => all.open(...model(name, "one")));
    for (const namespace of held) all.hold(namespace);
    const refused = refusal(() => all.open(...model("c", "one")));
    expect(refused.errorName).toBe("tooManyNamespaces");
    expect(refused.message).toContain('tenant "one" holds 2 rows');
    expect(refused.message).toContain("ledger.namespacesPerTenantMax");
    expect(refused.detail).toBe(2);
    for (const name of ["a", "b"]) all.hold(all.open(...model(name, "two")));
    expect(all.size).toBe(4);
    expect(refusal(() => all.open(...model("a"))).message).toContain("all 4 rows");
  });

  it("when used up takes only the tenant's own rows", () => {
    const all = fake.namespaces({ namespacesMax: 8, perTenantMax: 2 }, tenants);
    const other = all.open(...model("a", "two"));
    const first = all.open(...model("a", "one"));
    all.open(...model("b", "one"));
    expect(all.open(...model("c", "one")).index).toBe(first.index);
    expect(all.at(other.index)).toBe(other);
    expect(all.size).toBe(3);
  });

  it("counts bytes, so that few long descriptors are no way around it", () => {
    const all = fake.namespaces({ namespacesMax: 4_096, perTenantMax: 64 }, tenants);
    const long = (at: number) =>
      descriptor({ model: `${at}`.padEnd(1_000, "m"), groupKinds: ["g".repeat(256)] });
    let opened = 0;
    const refused = refusal(() => {
      for (; opened < 64; opened++) all.hold(all.open("one", long(opened)));
    });
    expect(refused.message).toContain('tenant "one"');
    expect(opened).toBeLessThan(LIMITS.namespaceTableBytes / 64 / 1_000 + 1);
    expect(all.open(...model("a", "two")).tenant).toBe("two");
  });

  it("is an equal one, at least what one HELLO names, at most the table", () => {
    expect(namespacesPerTenant(4_096, 0, 1)).toBe(4_096);
    expect(namespacesPerTenant(4_096, 0, 4)).toBe(1_024);
    expect(namespacesPerTenant(4_096, 0, 257)).toBe(LIMITS.namespacesPerHelloMax);
    expect(namespacesPerTenant(8, 0, 4)).toBe(8);
    expect(namespacesPerTenant(4_096, 10, 4)).toBe(10);
    expect(namespacesPerTenant(16, 100, 2)).toBe(16);
  });
});

it("agrees with a plain model under any sequence of opening, holding, letting go and eviction", () => {
  const step = fc.record({
    what: fc.constantFrom("open", "hold", "release", "records"),
    tenant: fc.constantFrom("one", "two"),
    name: fc.nat(9),
  });
  fc.assert(
    fc.property(fc.array(step, { maxLength: 150 }), (steps) => {
      const own = new Fake();
      const all = own.namespaces({ namespacesMax: 5, perTenantMax: 3 }, ["one", "two"]);
      const holders = new Map<string, number>();
      for (const { what, tenant, name } of steps) {
        const at = all.list.find(
          (each) => each.tenant === tenant && each.descriptor.model === `${name}`,
        );
        if (what === "open") {
          const free = all.list.filter(
            (each) => !holders.get(each.digestHex) && !own.records.get(each.index),
          );
          const mine = all.list.filter((each) => each.tenant === tenant);
          const possible =
            at !== undefined ||
            (mine.length < 3
              ? all.size < 5 || free.length > 0
              : free.some((f) => mine.includes(f)));
          if (possible) all.open(...model(`${name}`, tenant));
          else
            expect(refusal(() => all.open(...model(`${name}`, tenant))).errorName).toBe(
              "tooManyNamespaces",
            );
        } else if (at !== undefined) {
          const held = holders.get(at.digestHex) ?? 0;
          if (what === "hold") all.hold(at);
          else if (what === "release" && held > 0) all.release(at);
          else own.records.set(at.index, own.records.get(at.index) === 1 ? 0 : 1);
          const change = what === "hold" ? 1 : what === "release" && held > 0 ? -1 : 0;
          holders.set(at.digestHex, held + change);
        }
        expect(new Set(all.list.map((each) => each.digestHex)).size).toBe(all.size);
        expect(all.list.every((each, index) => each.index === index)).toBe(true);
        for (const tenantName of ["one", "two"]) {
          const count = all.list.filter((each) => each.tenant === tenantName).length;
          expect(count).toBeLessThanOrEqual(3);
        }
        for (const [digest, count] of holders) {
          if (count > 0) expect(all.list.some((each) => each.digestHex === digest)).toBe(true);
        }
        for (const each of all.list) {
          expect(own.rows[each.index]!.digest).toEqual(each.digest);
          expect(own.options[each.index]!.tenant).toBe(each.tenant === "one" ? 0 : 1);
        }
      }
    }),
  );
});
