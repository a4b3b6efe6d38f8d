/**
 * What a start does with variables of other programs. A group of settings is taken if none of its fields is set in
 * cairn's own way, nothing taken before set it, the whole configuration proves with it, and this host has the memory
 * and the directories it names: a leftover variable must not keep a daemon from starting. Every variable gets its line.
 *
 * It is read once, at start. A reload keeps what was taken (a file of another program that is gone by then would
 * otherwise drain the disks), except where cairn's own settings have come to say it.
 */
import { accessSync, constants, lstatSync, statSync } from "node:fs";
import { dirname } from "node:path";
import type { Inheritance, InheritanceWarning, PoolFault } from "../inherit.ts";
import { type ConfigSources, loadConfig } from "../load.ts";
import { judge, type Judged, type Objection, saidBefore, unproven } from "./judge.ts";
import { kvbmGiven, readKvbm } from "./kvbm.ts";
import { lmcacheGiven, readLmcache } from "./lmcache.ts";
import { type Group, type Note, type Reading, shown } from "./options.ts";

function parentFault(path: string): string | undefined {
  try {
    accessSync(path, constants.W_OK | constants.X_OK);
    return statSync(path).isDirectory() ? undefined : `${path} is no directory`;
  } catch (error) {
    return `${path} cannot be used: ${error instanceof Error ? error.message : String(error)}`;
  }
}

/** Why the NVMe tier would refuse a directory, or could not make it. */
function diskFault(path: string): string | undefined {
  const status = lstatSync(path, { throwIfNoEntry: false });
  if (status === undefined) return parentFault(dirname(path));
  const ours = status.isDirectory() && status.uid === process.geteuid?.();
  return ours && (status.mode & 0o077) === 0
    ? undefined
    : `${path} is there and no directory of ours with mode 0700`;
}

function sharedFault(path: string): string | undefined {
  return statSync(path, { throwIfNoEntry: false })?.isDirectory() === true
    ? undefined
    : `${path} is no directory; make it in the file system that the nodes share`;
}

/** Directories that a start could not use. */
const unusable: Objection = ({ settings }) => {
  try {
    for (const { path, value } of settings) {
      const faults =
        path === "nvme.directories"
          ? (value as readonly { readonly path: string }[]).map((one) => diskFault(one.path))
          : [path === "remote.directory" ? sharedFault(String(value)) : undefined];
      const fault = faults.find((one) => one !== undefined);
      if (fault !== undefined) return fault;
    }
    return undefined;
  } catch (error) {
    return error instanceof Error ? error.message : String(error);
  }
};

/** All that the environment says, a file of LMCache that it names included. */
function readVariables(env: Readonly<Record<string, string | undefined>>): Reading {
  const readings = [readKvbm(kvbmGiven(env)), readLmcache(lmcacheGiven(env))];
  return {
    groups: readings.flatMap(({ groups }) => groups),
    notes: readings.flatMap(({ notes }) => notes),
  };
}

const REASONS = { engine: "set at the engine: ", needless: "not needed: " } as const;

function warningOf(note: Note, { left }: Judged): InheritanceWarning {
  const { fate, text, group } = note;
  const source = shown(note.source);
  const why = group === undefined ? text : left.get(group);
  if (why !== undefined) {
    const reason = fate === "engine" || fate === "needless" ? REASONS[fate] : "";
    return { source, text: shown(`ignored: ${reason}${why}`) };
  }
  return { source, text: shown(`taken over: ${text}`) };
}

/** throws ConfigError for cairn's own configuration only. */
export function takeOver(from: ConfigSources, poolFault: PoolFault): Inheritance {
  const { groups, notes } = readVariables(from.env ?? process.env);
  const own = loadConfig(from);
  const setHere: Objection = ({ fields }) => {
    const path = fields.find((one) => own.sources.has(one));
    return path === undefined ? undefined : `${path} is set (${own.sources.get(path)})`;
  };
  const loadWith = (inherited: readonly Group[]) => loadConfig({ ...from, inherited });
  const proof = unproven((inherited) => void loadWith(inherited));
  const tooLarge: Objection = (group, taken) =>
    group.fields.includes("dram.capacityBytes")
      ? poolFault(loadWith([...taken, group]).config)
      : undefined;
  const judged = judge(groups, [setHere, saidBefore, proof, unusable, tooLarge]);
  const warnings = notes.map((note) => warningOf(note, judged));
  return { sources: { ...from, inherited: judged.taken }, warnings };
}
