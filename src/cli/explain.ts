/** `cairn explain KEY`: why a block is where it is, and why it is not elsewhere. */
import type { BlockExplanation } from "../edge/contract.ts";
import { readArguments } from "./arguments.ts";
import { EDGE_OPTIONS, edgeClient } from "./client.ts";
import { EXIT, UsageError } from "./exit.ts";
import { printJson, printLine, table } from "./output.ts";

const KEY = /^(?:[0-9a-fA-F]{8}){2,8}$/;

function text(block: BlockExplanation): string {
  const depth = block.depth === 0 ? "" : `, depth ${block.depth}`;
  const counts = `leases ${block.leases}, children ${block.children}`;
  const rows = block.places.map(({ tier, why }) => [tier, why]);
  return [
    `${block.key}`,
    `namespace ${block.namespace}${depth}, ${counts}`,
    block.verdict,
    "",
    table(["tier", "why"], rows),
  ].join("\n");
}

export async function explainCommand(words: readonly string[]): Promise<number> {
  const parsed = readArguments(words, EDGE_OPTIONS, 1);
  const [key] = parsed.positionals;
  if (key === undefined || !KEY.test(key)) {
    throw new UsageError("explain takes one whole block key in hex");
  }
  const client = edgeClient(parsed);
  const answer = await client.get<{ readonly blocks: readonly BlockExplanation[] }>(
    `/v1/blocks/explain/${key}`,
  );
  if (parsed.json) printJson(answer);
  else if (answer.blocks.length > 0) printLine(answer.blocks.map(text).join("\n\n"));
  else printLine("This node does not know the key: never stored here, or evicted and forgotten.");
  return answer.blocks.length > 0 ? EXIT.OK : EXIT.FAILURE;
}
