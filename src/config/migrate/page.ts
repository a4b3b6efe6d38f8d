/** The cairn.yaml that `cairn config migrate` prints: what was taken, and in comments what became of the rest. */
import { stringify } from "yaml";
import { mergeTrees } from "../defaults.ts";
import { proveInherited } from "../load.ts";
import { type Note, type Reading, shown } from "./options.ts";
import { type Judged, judge, saidBefore, unproven } from "./judge.ts";

type Tree = Readonly<Record<string, unknown>>;

export interface MigratedNote {
  readonly source: string;
  readonly fate: Note["fate"];
  readonly text: string;
}

export interface Migrated {
  /** The shape of cairn.yaml. */
  readonly config: Tree;
  /** One for each option, in the order they were given. */
  readonly notes: readonly MigratedNote[];
  /** The text of a cairn.yaml with comments. */
  readonly text: string;
}

function treeOf({ taken }: Judged): Tree {
  let tree: unknown = {};
  for (const { path, value } of taken.flatMap(({ settings }) => settings)) {
    const nested = path.split(".").reduceRight<unknown>((inner, key) => ({ [key]: inner }), value);
    tree = mergeTrees(tree, nested);
  }
  return tree as Tree;
}

function noteOf({ source, fate, text, group }: Note, { left }: Judged): MigratedNote {
  const why = group === undefined ? undefined : left.get(group);
  return why === undefined
    ? { source: shown(source), fate, text: shown(text) }
    : { source: shown(source), fate: "refused", text: shown(why) };
}

const HEAD: readonly string[] = [
  "# A cairn.yaml made from the configuration of another program. Prove it: `cairn config check --config FILE`.",
  "# Blocks that the other program stored are not read: the cache starts cold, its files and objects stay.",
  "# docs/migration.md says what each option becomes.",
];

const CHAPTERS: readonly (readonly [Note["fate"], string])[] = [
  ["mapped", "Taken:"],
  ["refused", "Not taken:"],
  ["unknown", "Not known:"],
  ["missing", "No counterpart:"],
  ["engine", "Set at the engine (kv_connector_extra_config):"],
  ["needless", "Not needed:"],
];

/** One line a note. Notes hold no control characters (`shown`), so none can end its comment. */
function chapter(notes: readonly MigratedNote[], title: string): readonly string[] {
  if (notes.length === 0) return [];
  return ["#", `# ${title}`, ...notes.map(({ source, text }) => `#   ${source}: ${text}`)];
}

/** Proves each group on the defaults; this host's directories are not looked at, since the file may be another's. */
export function migrate(readings: readonly Reading[]): Migrated {
  const groups = readings.flatMap((reading) => reading.groups);
  const judged = judge(groups, [saidBefore, unproven(proveInherited)]);
  const notes = readings.flatMap((reading) => reading.notes.map((note) => noteOf(note, judged)));
  const config = treeOf(judged);
  const comments = CHAPTERS.flatMap(([fate, title]) =>
    chapter(
      notes.filter((note) => note.fate === fate),
      title,
    ),
  );
  const body = Object.keys(config).length === 0 ? "" : `\n${stringify(config)}`;
  return { config, notes, text: `${[...HEAD, ...comments].join("\n")}\n${body}` };
}
