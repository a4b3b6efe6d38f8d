/**
 * Who may speak HTTP to the edge. Three rules, checked before anything else of a request is looked at:
 *
 * - A token, when one is set, is needed on every path, the live page and the probes included. Browsers send
 *   it as the password of Basic authentication (any user name), which they also attach to an EventSource.
 * - On a listener without credentials (loopback only) the Host header must be a loopback name: a page of
 *   another site that re-binds its name to 127.0.0.1 still sends its own name.
 * - A request that a browser marks as coming from another site is refused, so that cached credentials or
 *   the loopback position cannot be borrowed.
 */
import { createHash, timingSafeEqual } from "node:crypto";
import type { IncomingHttpHeaders } from "node:http";
import { isLoopback, type ListenAddress } from "../config/listen.ts";
import { CairnError } from "../errors.ts";

export interface AccessRules {
  readonly address: ListenAddress;
  readonly token: string | undefined;
  /** The listener lets nobody in without a certificate that its CA signed. */
  readonly clientCertificates: boolean;
}

function digest(text: string): Buffer {
  return createHash("sha256").update(text, "utf8").digest();
}

/** Equal in constant time, whatever the lengths. */
export function equalSecrets(left: string, right: string): boolean {
  return timingSafeEqual(digest(left), digest(right));
}

/** The secret of an Authorization header: bearer token, or the password of Basic. */
export function presentedSecret(header: string | undefined): string | undefined {
  const match = /^(bearer|basic) +(\S+)$/i.exec(header ?? "");
  if (match === null) return undefined;
  if (match[1]!.toLowerCase() === "bearer") return match[2]!;
  const pair = Buffer.from(match[2]!, "base64").toString("utf8");
  const colon = pair.indexOf(":");
  return colon < 0 ? undefined : pair.slice(colon + 1);
}

/** Host name of a Host header or an Origin, without port and brackets. */
function hostName(authority: string): string {
  const match = /^(?:\[([0-9a-fA-F:.]+)\]|([^:/[\]]*))(?::\d{1,5})?$/.exec(authority);
  return (match?.[1] ?? match?.[2] ?? "").toLowerCase();
}

function checkSite(headers: IncomingHttpHeaders, address: ListenAddress, guarded: boolean): void {
  const host = headers.host ?? "";
  if (address.kind === "tcp" && !guarded && !isLoopback(hostName(host)))
    throw new CairnError("crossSite", `Host "${host.slice(0, 100)}" is not this listener`);
  const origin = headers.origin;
  if (typeof origin === "string" && origin.replace(/^https?:\/\//, "") !== host)
    throw new CairnError("crossSite", `Origin "${origin.slice(0, 100)}" is another site`);
  if (headers["sec-fetch-site"] === "cross-site")
    throw new CairnError("crossSite", "the browser says that another site made this request");
}

/** throws unauthorized or crossSite. */
export function checkAccess(rules: AccessRules, headers: IncomingHttpHeaders): void {
  if (rules.token !== undefined) {
    const secret = presentedSecret(headers.authorization);
    if (secret === undefined) throw new CairnError("unauthorized", "a token is needed");
    if (!equalSecrets(secret, rules.token))
      throw new CairnError("unauthorized", "the token is wrong");
  }
  checkSite(headers, rules.address, rules.token !== undefined || rules.clientCertificates);
}
