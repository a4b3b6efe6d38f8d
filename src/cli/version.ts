/** `cairn version`, and the version for everybody else. */
import { readFileSync } from "node:fs";
import { bundled } from "../bundle/place.ts";
import { PROTOCOL_VERSION } from "../engine-api/protocol.ts";
import { EXIT } from "./exit.ts";
import { printJson, printLine } from "./output.ts";

/** Version of package.json. */
export function packageVersion(): string {
  const text = readFileSync(new URL("../../package.json", import.meta.url), "utf8");
  return (JSON.parse(text) as { readonly version: string }).version;
}

export async function versionCommand(words: readonly string[]): Promise<number> {
  const version = packageVersion();
  const from = bundled ? "bundle" : "sources";
  if (words.includes("--json"))
    printJson({ version, protocol: PROTOCOL_VERSION, node: process.version, from });
  else
    printLine(`cairn ${version} (protocol ${PROTOCOL_VERSION}, node ${process.version}, ${from})`);
  return EXIT.OK;
}
