/** The table of commands: one row each, with its help text and the module that is loaded when it runs. */

export interface Command {
  readonly name: string;
  readonly summary: string;
  readonly usage: string;
  /** The command prints its own --help. */
  readonly ownHelp?: boolean;
  /** Returns the exit code. */
  readonly run: (words: readonly string[]) => Promise<number>;
}

const CONFIG_NOTE = `
  --config FILE          read this cairn.yaml (else CAIRN_CONFIG, ./cairn.yaml, /etc/cairn/cairn.yaml)
  --SECTION.FIELD VALUE  any setting of docs/config.md, such as --dram.capacityBytes 64GiB
  --json                 one JSON object on the last line`;

const EDGE_NOTE = `
  --edge ADDRESS         host:port or unix:/path of the daemon's HTTP side (default: edge.listen)
  --token-file FILE      bearer token (default: edge.tokenFile)
  --ca, --cert, --key    PEM files, when the daemon speaks TLS${CONFIG_NOTE}`;

export const COMMANDS: readonly Command[] = [
  {
    name: "daemon",
    summary: "run the node daemon in the foreground",
    usage: `usage: cairn daemon [options]

Owns the KV-cache blocks of this node and serves engines on a Unix socket. SIGTERM drains and stops,
SIGHUP reads the configuration again.
${CONFIG_NOTE}`,
    run: async (words) => (await import("./daemon.ts")).daemonCommand(words),
  },
  {
    name: "status",
    summary: "tiers, hit rate, engines, unproven namespaces, orphans, pins",
    usage: `usage: cairn status [options]\n${EDGE_NOTE}`,
    run: async (words) => (await import("./status.ts")).statusCommand(words),
  },
  {
    name: "top",
    summary: "live view of tiers, hit rate and bandwidth",
    usage: `usage: cairn top [--interval SECONDS] [--count N] [options]

Redraws each interval on a terminal (q ends it); prints one line each where the output is no terminal
or TERM is dumb. With --json, one object a line.

  --interval SECONDS     0.2 to 60 (default 1)
  --count N              end after N readings (default: never)${EDGE_NOTE}`,
    run: async (words) => (await import("./top.ts")).topCommand(words),
  },
  {
    name: "doctor",
    summary: "what this host has for cairn, and how to fix what it lacks",
    usage: `usage: cairn doctor [--verbose] [options]

Checks Node, the addon, free DRAM, tmpfs, huge pages, memlock, io_uring, NUMA, CUDA, NVML and NIXL.
Libraries are called through ffi-napi in a child process where that package built; else doctor looks at
/proc, /sys and library paths, and says so. Exit code 1 when something the daemon needs is missing.

  --verbose              print each finding's source${CONFIG_NOTE}`,
    run: async (words) => (await import("./doctor.ts")).doctorCommand(words),
  },
  {
    name: "explain",
    summary: "why a block is where it is, and why it is not elsewhere",
    usage: `usage: cairn explain KEY [options]

KEY is one whole block key in hex, as events and locate answers show it. Tier by tier it says why the block
is there, why it was not stored or written back, and what keeps it. Exit code 1 when the key is not known.
${EDGE_NOTE}`,
    run: async (words) => (await import("./explain.ts")).explainCommand(words),
  },
  {
    name: "config",
    summary: "check, show, migrate or document the configuration",
    usage: `usage: cairn config check|show|migrate|reference [options]

  check                  load and prove it; print every problem with its source (exit code 2)
  show                   print what is in force as cairn.yaml would say it; --json with sources
  migrate                print the cairn.yaml that options of Dynamo KVBM or LMCache come to (docs/migration.md)
    --lmcache FILE         the file that LMCACHE_CONFIG_FILE names
    --env                  DYN_KVBM_* and LMCACHE_* variables
    --workers N            worker processes per node, each of which had the sizes of LMCache's file (default 1)
    -- FLAGS               what follows is a command line of \`lmcache server\`
  reference              print docs/config.md; --write refreshes it, docs/errors.md and docs/migration.md
${CONFIG_NOTE}`,
    run: async (words) => (await import("./config.ts")).configCommand(words),
  },
  {
    name: "purge",
    summary: "delete the DRAM pool (--nvme: and the disks' blocks), so that the next start is cold",
    usage: `usage: cairn purge --yes [--nvme] [options]

Removes the pool file in dram.directory. Refused while a daemon holds it. Blocks in nvme.directories are kept
unless --nvme is given; other files there are never touched.

  --yes                  really delete; without it the files are only listed
  --nvme                 delete what the NVMe tier keeps in its directories, too${CONFIG_NOTE}`,
    run: async (words) => (await import("./purge.ts")).purgeCommand(words),
  },
  {
    name: "demo",
    summary: "two llama.cpp engines share one daemon; every probability is compared",
    usage: `usage: cairn demo [--nvme] [--quick] [--json]

Two processes run the same model and share one daemon over its real socket: at least 20 requests with
shared prefixes, cold and warm; every restored probability is compared with a recomputed one; a stored
block is damaged on purpose; the daemon is killed and comes back. Exit code 1 if anything differs.

  --nvme                 the second part: two nodes whose pools are too small, a disk each, one shared directory
  --quick                a smaller model
  --json                 progress on standard error, one object on the last line of standard output`,
    run: async (words) => (await import("../../connectors/node/demo/cli.ts")).demoMain(words),
  },
  {
    name: "verify-engine",
    summary: "run an engine with and without this daemon, and compare to the bit",
    usage: `usage: cairn verify-engine vllm [--python PATH] [--dtype float32|bfloat16] [options]

An acceptance test after each upgrade. Writes a tiny model, runs the engine without cairn, then with it (cold), then
in a new process that loads what the first one stored; compares tokens and log-probabilities. Needs a running daemon.
Prints pass, or the first difference and exit code 1.

  --python PATH          the interpreter that the engine is installed for (default python3)
  --dtype TYPE           float32 (default) or bfloat16${CONFIG_NOTE}`,
    run: async (words) => (await import("./verify-engine.ts")).verifyEngineCommand(words),
  },
  {
    name: "bench",
    summary: "measure one scenario against its bar and its reference",
    usage: "usage: cairn bench NAME [--json] [options]",
    ownHelp: true,
    run: async (words) => (await import("../../bench/cli.ts")).benchMain(words),
  },
  {
    name: "replay",
    summary: "replay a trace of requests, in the pure ledger or through a daemon",
    usage: "usage: cairn replay TRACE [--daemon] [--capacity-blocks N] [--policy lru] [--json]",
    ownHelp: true,
    run: async (words) => (await import("../../bench/replay/cli.ts")).replayMain(words),
  },
  {
    name: "version",
    summary: "print the version",
    usage: "usage: cairn version [--json]",
    run: async (words) => (await import("./version.ts")).versionCommand(words),
  },
];
