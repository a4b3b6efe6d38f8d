import { describe, expect, test } from "vitest";
import { equalSecrets, presentedSecret } from "../../src/edge/access.ts";
import { testApp } from "./fixture.ts";

const TOKEN = "correct-horse-battery";
const basic = (secret: string): string =>
  `Basic ${Buffer.from(`any:${secret}`).toString("base64")}`;

type Method = "GET" | "POST" | "PUT";
interface Endpoint {
  readonly method: Method;
  readonly url: string;
  readonly status: number;
  readonly payload?: object;
}

/** Every route of the application with a request it accepts; the list is compared with OpenAPI below. */
const ENDPOINTS: readonly Endpoint[] = [
  { method: "GET", url: "/healthz", status: 200 },
  { method: "GET", url: "/readyz", status: 503 },
  { method: "GET", url: "/metrics", status: 200 },
  { method: "GET", url: "/v1/tiers", status: 200 },
  { method: "GET", url: "/v1/stats", status: 200 },
  { method: "GET", url: "/v1/namespaces", status: 200 },
  { method: "POST", url: "/v1/blocks/locate", status: 200, payload: { keys: ["11".repeat(8)] } },
  { method: "GET", url: `/v1/blocks/explain/${"11".repeat(32)}`, status: 200 },
  { method: "GET", url: "/v1/config", status: 200 },
  { method: "PUT", url: "/v1/config", status: 200, payload: { log: { level: "warn" } } },
  { method: "GET", url: "/openapi.json", status: 200 },
  { method: "GET", url: "/", status: 200 },
  { method: "GET", url: "/page.css", status: 200 },
  { method: "GET", url: "/page.js", status: 200 },
  { method: "GET", url: "/icon.svg", status: 200 },
];

const REFUSED: readonly (readonly [string, string | undefined])[] = [
  ["no credentials", undefined],
  ["a wrong bearer token", "Bearer wrong-horse-battery-"],
  ["a prefix of the token", `Bearer ${TOKEN.slice(0, -1)}`],
  ["the token with something behind it", `Bearer ${TOKEN}x`],
  ["another scheme", `Digest ${TOKEN}`],
  ["the token alone", TOKEN],
  ["Basic with a wrong password", basic("nope")],
  ["Basic without a colon", `Basic ${Buffer.from(TOKEN).toString("base64")}`],
];

describe("a listener that needs a token", () => {
  test.each(ENDPOINTS)(
    "$method $url is refused without the right credentials and served with them",
    async (endpoint) => {
      const { status, ...request } = endpoint;
      const { app } = await testApp({ token: TOKEN, listen: "0.0.0.0:7411" });
      for (const [what, authorization] of REFUSED) {
        const headers = authorization === undefined ? {} : { authorization };
        const answer = await app.inject({ ...request, headers });
        expect(answer.statusCode, what).toBe(401);
        expect(answer.json(), what).toMatchObject({ code: 506, name: "unauthorized" });
        expect(answer.headers["www-authenticate"], what).toContain("Bearer");
      }
      for (const authorization of [`Bearer ${TOKEN}`, `bearer ${TOKEN}`, basic(TOKEN)]) {
        const answer = await app.inject({ ...request, headers: { authorization } });
        expect(answer.statusCode, authorization).toBe(status);
      }
      await app.close();
    },
  );

  test("the event stream is refused without the token", async () => {
    const { app, events } = await testApp({ token: TOKEN });
    const answer = await app.inject({ url: "/v1/events" });
    expect(answer.statusCode).toBe(401);
    expect(events.size).toBe(0);
    await app.close();
  });

  test("an unknown path tells nothing to a caller without the token", async () => {
    const { app } = await testApp({ token: TOKEN });
    const answer = await app.inject({ url: "/v1/secret" });
    expect(answer.json()).toMatchObject({ name: "unauthorized" });
    await app.close();
  });

  test("the list of endpoints above is complete", async () => {
    const { app } = await testApp();
    const { paths } = (await app.inject({ url: "/openapi.json" })).json<{
      paths: Record<string, object>;
    }>();
    const documented = Object.entries(paths).flatMap(([path, methods]) =>
      Object.keys(methods).map(
        (method) => `${method.toUpperCase()} ${path.replace("{key}", "11".repeat(32))}`,
      ),
    );
    const listed = ENDPOINTS.map(({ method, url }) => `${method} ${url}`);
    expect(documented.filter((one) => !listed.includes(one))).toEqual(["GET /v1/events"]);
    await app.close();
  });

  test("an application off the host without credentials cannot be built", async () => {
    await expect(testApp({ listen: "0.0.0.0:7411" })).rejects.toThrow(/credentials/);
  });
});

describe("a loopback listener without a token", () => {
  test.each(ENDPOINTS)(
    "$method $url refuses a foreign Host, a foreign Origin and cross-site requests",
    async (endpoint) => {
      const { status, ...request } = endpoint;
      const { app } = await testApp();
      const foreign = [
        { host: "evil.example" },
        { host: "127.0.0.1.evil.example:7411" },
        { host: "10.0.0.1" },
        { host: "127.0.0.1:7411", origin: "http://evil.example" },
        { host: "127.0.0.1:7411", origin: "null" },
        { host: "127.0.0.1:7411", "sec-fetch-site": "cross-site" },
      ];
      for (const headers of foreign) {
        const answer = await app.inject({ ...request, headers });
        expect(answer.statusCode, JSON.stringify(headers)).toBe(403);
        expect(answer.json()).toMatchObject({ name: "crossSite" });
      }
      for (const host of ["127.0.0.1:7411", "localhost:7411", "[::1]:7411", "127.0.0.1"]) {
        const answer = await app.inject({
          ...request,
          headers: { host, origin: `http://${host}` },
        });
        expect(answer.statusCode, host).toBe(status);
      }
      await app.close();
    },
  );

  test("every answer carries the headers that keep a browser from guessing and framing", async () => {
    const { app } = await testApp();
    for (const url of ["/", "/v1/stats", "/nope"]) {
      const { headers } = await app.inject({ url });
      expect(headers["content-security-policy"]).toContain("default-src 'none'");
      expect(headers["content-security-policy"]).toContain("frame-ancestors 'none'");
      expect(headers["x-content-type-options"]).toBe("nosniff");
      expect(headers["access-control-allow-origin"]).toBeUndefined();
    }
    await app.close();
  });
});

describe("secrets", () => {
  test("only equal secrets are equal", () => {
    expect(equalSecrets(TOKEN, TOKEN)).toBe(true);
    expect(equalSecrets(TOKEN, `${TOKEN} `)).toBe(false);
    expect(equalSecrets("", "a")).toBe(false);
  });

  test("a header is read as bearer or basic and nothing else", () => {
    expect(presentedSecret("Bearer abc")).toBe("abc");
    expect(presentedSecret(basic("p:q"))).toBe("p:q");
    expect(presentedSecret("Bearer a b")).toBeUndefined();
    expect(presentedSecret("")).toBeUndefined();
    expect(presentedSecret(undefined)).toBeUndefined();
  });
});
