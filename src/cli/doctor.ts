/** `cairn doctor`: runs every check of doctor/ and prints status, finding and fix of each. */
import { configInForce, readArguments } from "./arguments.ts";
import { hostChecks } from "./doctor/host.ts";
import { libraryChecks } from "./doctor/libraries.ts";
import { lowerChecks } from "./doctor/lower.ts";
import type { Finding } from "./doctor/finding.ts";
import { EXIT } from "./exit.ts";
import { printJson, printLine } from "./output.ts";

const MARKS: Readonly<Record<Finding["status"], string>> = {
  ok: "ok     ",
  absent: "absent ",
  warn: "warn   ",
  fail: "FAIL   ",
};

function findingText(finding: Finding, verbose: boolean): string {
  const lines = [`${MARKS[finding.status]} ${finding.check.padEnd(12)} ${finding.found}`];
  if (finding.fix !== null) lines.push(`${" ".repeat(21)}fix: ${finding.fix}`);
  if (verbose) lines.push(`${" ".repeat(21)}source: ${finding.source}`);
  return lines.join("\n");
}

export async function doctorCommand(words: readonly string[]): Promise<number> {
  const parsed = readArguments(words, { verbose: "boolean" });
  const { config } = await configInForce(parsed);
  const verbose = parsed.values.get("verbose") === "true";
  const findings = [...hostChecks(config), ...lowerChecks(config), ...(await libraryChecks())];
  const healthy = findings.every(({ status }) => status !== "fail");
  if (parsed.json) printJson({ healthy, findings });
  else {
    for (const finding of findings) printLine(findingText(finding, verbose));
    printLine();
    printLine(
      healthy ? "cairn can run here" : "cairn cannot run here until the FAIL lines are fixed",
    );
  }
  return healthy ? EXIT.OK : EXIT.FAILURE;
}
