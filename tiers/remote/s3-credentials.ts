/** Credentials from a file in the format of AWS's shared credentials file, for daemons that have no home. */
import { constants } from "node:fs";
import { open } from "node:fs/promises";
import { CairnError } from "../../src/errors.ts";

export interface S3Credentials {
  readonly accessKeyId: string;
  readonly secretAccessKey: string;
  readonly sessionToken?: string;
}

const FILE_BYTES_MAX = 65_536;
const VISIBLE = /^[\x21-\x7e]+$/;

/** Reads the profile of the text. Throws CairnError configInvalid. */
export function parseCredentials(text: string, profile = "default"): S3Credentials {
  let inside = false;
  const values = new Map<string, string>();
  for (const raw of text.split("\n")) {
    const line = raw.trim();
    const section = /^\[(?:profile\s+)?([^\]]+)\]$/.exec(line);
    if (section !== null) inside = section[1]?.trim() === profile;
    const pair = /^(aws_[a-z_]+)\s*=\s*(.+)$/.exec(line);
    if (!inside || pair === null) continue;
    const [, name = "", value = ""] = pair;
    // They travel in headers: what looks like a key and is none is said here, not refused by each request.
    if (!VISIBLE.test(value)) {
      throw new CairnError(
        "configInvalid",
        `${name} of the credentials file is not of visible ASCII`,
      );
    }
    values.set(name, value);
  }
  const accessKeyId = values.get("aws_access_key_id");
  const secretAccessKey = values.get("aws_secret_access_key");
  if (accessKeyId === undefined || secretAccessKey === undefined) {
    throw new CairnError("configInvalid", `the credentials file has no keys under [${profile}]`);
  }
  const sessionToken = values.get("aws_session_token");
  return sessionToken === undefined
    ? { accessKeyId, secretAccessKey }
    : { accessKeyId, secretAccessKey, sessionToken };
}

/** Throws CairnError directoryUnsafe when others may read the file, configInvalid when it holds no keys. */
export async function readCredentials(path: string): Promise<S3Credentials> {
  const file = await open(path, constants.O_RDONLY);
  try {
    const { mode, size } = await file.stat();
    if ((mode & 0o077) !== 0) {
      throw new CairnError("directoryUnsafe", `${path} is open to others; its mode must be 0600`);
    }
    if (size > FILE_BYTES_MAX) throw new CairnError("configInvalid", `${path} is too long`);
    return parseCredentials(await file.readFile("utf8"));
  } finally {
    await file.close();
  }
}
