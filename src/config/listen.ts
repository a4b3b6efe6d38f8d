/** Addresses of the edge: `host:port`, `[v6]:port`, `unix:/path`; and which of them leave the host. */

export type ListenAddress =
  | { readonly kind: "unix"; readonly path: string }
  | {
      readonly kind: "tcp";
      readonly host: string;
      readonly port: number;
      readonly loopback: boolean;
    };

/** 127.0.0.0/8, ::1 and `localhost`; everything else may be reached from elsewhere. */
export function isLoopback(host: string): boolean {
  return host === "localhost" || host === "::1" || /^127\.\d{1,3}\.\d{1,3}\.\d{1,3}$/.test(host);
}

/** Undefined for text that is no address. Port 0 asks the system for a free one. */
export function parseListen(text: string): ListenAddress | undefined {
  if (text.startsWith("unix:")) {
    const path = text.slice("unix:".length);
    return path.startsWith("/") ? { kind: "unix", path } : undefined;
  }
  const match = /^(?:\[([0-9a-fA-F:.]+)\]|([^\s:[\]]+)):(\d{1,5})$/.exec(text);
  if (match === null) return undefined;
  const host = (match[1] ?? match[2]!).toLowerCase();
  const port = Number(match[3]);
  return port > 65_535 ? undefined : { kind: "tcp", host, port, loopback: isLoopback(host) };
}
