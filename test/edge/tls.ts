/**
 * A throw-away authority, a server and a client of it, and a stranger: X.509 certificates written byte by
 * byte (DER), so that the test needs no tool of the host and no key lies in the repository.
 */
import { generateKeyPairSync, type KeyObject, sign } from "node:crypto";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";

const TAG = {
  BOOLEAN: 1,
  INTEGER: 2,
  BITS: 3,
  OCTETS: 4,
  OID: 6,
  UTF8: 12,
  UTC: 23,
  SEQUENCE: 48,
  SET: 49,
} as const;
/** Object identifiers, encoded. */
const OID = {
  ecdsaWithSha256: "2a8648ce3d040302",
  commonName: "550403",
  basicConstraints: "551d13",
  subjectAltName: "551d11",
} as const;

function der(tag: number, ...parts: readonly Uint8Array[]): Buffer {
  const body = Buffer.concat(parts);
  const { length } = body;
  const size =
    length < 128 ? [length] : length < 256 ? [0x81, length] : [0x82, length >> 8, length & 255];
  return Buffer.concat([Buffer.from([tag, ...size]), body]);
}

function oid(hex: string): Buffer {
  return der(TAG.OID, Buffer.from(hex, "hex"));
}

function distinguishedName(common: string): Buffer {
  const pair = der(TAG.SEQUENCE, oid(OID.commonName), der(TAG.UTF8, Buffer.from(common)));
  return der(TAG.SEQUENCE, der(TAG.SET, pair));
}

function time(milliseconds: number): Buffer {
  const digits = new Date(milliseconds).toISOString().replaceAll(/\D/g, "").slice(2, 14);
  return der(TAG.UTC, Buffer.from(`${digits}Z`));
}

function extension(identifier: string, critical: boolean, value: Buffer): Buffer {
  const flag = critical ? [der(TAG.BOOLEAN, Buffer.from([255]))] : [];
  return der(TAG.SEQUENCE, oid(identifier), ...flag, der(TAG.OCTETS, value));
}

interface Identity {
  readonly name: string;
  readonly publicKey: KeyObject;
  readonly privateKey: KeyObject;
}

function identity(name: string): Identity {
  return { name, ...generateKeyPairSync("ec", { namedCurve: "prime256v1" }) };
}

/** PEM certificate of `subject`, signed by `issuer`; an authority's own is signed by itself. */
function certificate(subject: Identity, issuer: Identity, serial: number): string {
  const day = 86_400_000;
  const authority = der(TAG.BOOLEAN, Buffer.from([255]));
  const extensions = [
    ...(subject === issuer
      ? [extension(OID.basicConstraints, true, der(TAG.SEQUENCE, authority))]
      : []),
    // dNSName has the context tag 2.
    extension(OID.subjectAltName, false, der(TAG.SEQUENCE, der(0x82, Buffer.from("localhost")))),
  ];
  const algorithm = der(TAG.SEQUENCE, oid(OID.ecdsaWithSha256));
  const toSign = der(
    TAG.SEQUENCE,
    der(0xa0, der(TAG.INTEGER, Buffer.from([2]))),
    der(TAG.INTEGER, Buffer.from([serial])),
    algorithm,
    distinguishedName(issuer.name),
    der(TAG.SEQUENCE, time(Date.now() - day), time(Date.now() + 2 * day)),
    distinguishedName(subject.name),
    subject.publicKey.export({ type: "spki", format: "der" }),
    der(0xa3, der(TAG.SEQUENCE, ...extensions)),
  );
  const signature = sign("sha256", toSign, issuer.privateKey);
  const bits = der(TAG.BITS, Buffer.from([0]), signature);
  const whole = der(TAG.SEQUENCE, toSign, algorithm, bits).toString("base64");
  const lines = (whole.match(/.{1,64}/g) ?? []).join("\n");
  return `-----BEGIN CERTIFICATE-----\n${lines}\n-----END CERTIFICATE-----\n`;
}

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

/** Writes all of them into the directory; keys with mode 0600. */
export function makeCertificates(directory: string): Certificates {
  const authority = identity("authority");
  let serial = 0;
  const write = (
    subject: Identity,
    issuer: Identity,
  ): { readonly cert: string; readonly key: string } => {
    const cert = join(directory, `${subject.name}.crt`);
    const key = join(directory, `${subject.name}.key`);
    serial += 1;
    writeFileSync(cert, certificate(subject, issuer, serial));
    writeFileSync(key, subject.privateKey.export({ type: "pkcs8", format: "pem" }), {
      mode: 0o600,
    });
    return { cert, key };
  };
  const own = write(authority, authority);
  const server = write(identity("server"), authority);
  const client = write(identity("client"), authority);
  const stranger = identity("stranger");
  const foreign = write(stranger, stranger);
  return {
    ca: own.cert,
    serverCert: server.cert,
    serverKey: server.key,
    clientCert: client.cert,
    clientKey: client.key,
    strangerCert: foreign.cert,
    strangerKey: foreign.key,
    read: (path) => readFileSync(path, "utf8"),
  };
}
