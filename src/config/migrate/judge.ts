/** Which groups of settings are taken, and why the others are not. */
import { ConfigError, formatProblem } from "../load.ts";
import type { Group } from "./options.ts";

/** Why a group is not taken; undefined: it can be. */
export type Objection = (group: Group, taken: readonly Group[]) => string | undefined;

export interface Judged {
  readonly taken: readonly Group[];
  readonly left: ReadonlyMap<Group, string>;
}

/** Later objections may rely on what the earlier ones rule out. */
function firstOf(objections: readonly Objection[], group: Group, taken: readonly Group[]) {
  for (const object of objections) {
    const why = object(group, taken);
    if (why !== undefined) return why;
  }
  return undefined;
}

/** Takes one group after the other, as far as nothing stands against it. */
export function judge(groups: readonly Group[], objections: readonly Objection[]): Judged {
  const taken: Group[] = [];
  const left = new Map<Group, string>();
  for (const group of groups) {
    const why = firstOf(objections, group, taken);
    if (why === undefined) taken.push(group);
    else left.set(group, why);
  }
  return { taken, left };
}

/** Two programs say it: the first counts. */
export const saidBefore: Objection = (group, taken) => {
  const other = taken.find(({ fields }) => fields.some((path) => group.fields.includes(path)));
  return other === undefined ? undefined : `${other.source} says it already`;
};

/** What is wrong with a configuration that holds a group. */
export function unproven(prove: (groups: readonly Group[]) => void): Objection {
  return (group, taken) => {
    try {
      prove([...taken, group]);
      return undefined;
    } catch (error) {
      if (!(error instanceof ConfigError)) throw error;
      return error.problems.map(formatProblem).join("; ");
    }
  };
}
