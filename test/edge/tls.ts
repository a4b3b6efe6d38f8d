/** A throw-away authority, a server and a client of it, and a stranger, made with openssl. */
import { execFileSync } from "node:child_process";
import { chmodSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";

const KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"];

export interface Certificates {
  readonly ca: string;
  readonly serverCert: string;
  readonly serverKey: string;
  readonly clientCert: string;
  readonly clientKey: string;
  readonly strangerCert: string;
  readonly strangerKey: string;
  readonly read: (path: string) => string;
}

function openssl(args: readonly string[]): void {
  execFileSync("openssl", [...args], { stdio: "pipe" });
}

function selfSigned(
  directory: string,
  name: string,
): { readonly cert: string; readonly key: string } {
  const cert = join(directory, `${name}.crt`);
  const key = join(directory, `${name}.key`);
  openssl(["req", "-x509", ...KEY, "-subj", `/CN=${name}`, "-keyout", key, "-out", cert]);
  chmodSync(key, 0o600);
  return { cert, key };
}

function signed(
  directory: string,
  name: string,
  authority: { readonly cert: string; readonly key: string },
): { readonly cert: string; readonly key: string } {
  const cert = join(directory, `${name}.crt`);
  const key = join(directory, `${name}.key`);
  const asked = join(directory, `${name}.csr`);
  const extensions = join(directory, `${name}.ext`);
  writeFileSync(extensions, "subjectAltName=DNS:localhost,IP:127.0.0.1\n");
  openssl(["req", ...KEY, "-subj", `/CN=${name}`, "-keyout", key, "-out", asked]);
  const by = ["-CA", authority.cert, "-CAkey", authority.key, "-CAcreateserial"];
  openssl([
    "x509",
    "-req",
    "-in",
    asked,
    ...by,
    "-days",
    "2",
    "-extfile",
    extensions,
    "-out",
    cert,
  ]);
  chmodSync(key, 0o600);
  return { cert, key };
}

export function makeCertificates(directory: string): Certificates {
  const authority = selfSigned(directory, "authority");
  const server = signed(directory, "server", authority);
  const client = signed(directory, "client", authority);
  const stranger = selfSigned(directory, "stranger");
  return {
    ca: authority.cert,
    serverCert: server.cert,
    serverKey: server.key,
    clientCert: client.cert,
    clientKey: client.key,
    strangerCert: stranger.cert,
    strangerKey: stranger.key,
    read: (path) => readFileSync(path, "utf8"),
  };
}
