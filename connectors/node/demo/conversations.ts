/**
 * The demo's requests: synthetic conversations over shared system prompts, the same on every run.
 *
 * A prompt is everything said so far, so each turn extends the one before it (multi-turn reuse), and conversations
 * under one system prompt share its blocks (shared-prefix reuse).
 */

export type EngineName = "A" | "B";

/** One turn of a conversation, put to one engine. */
export interface PlannedRequest {
  readonly engine: EngineName;
  readonly conversation: number;
}

/** A stretch of requests under one heading. */
export interface Phase {
  readonly name: "store" | "reuse" | "interleave" | "corrupt" | "kill" | "restart";
  readonly title: string;
  readonly requests: readonly PlannedRequest[];
}

const ask = (engine: EngineName, ...conversations: readonly number[]): PlannedRequest[] =>
  conversations.map((conversation) => ({ engine, conversation }));

/** 28 requests. The first request of B, and of each engine after a restart, pays for its incarnation proof. */
export const PHASES: readonly Phase[] = [
  { name: "store", title: "engine A answers and stores", requests: ask("A", 1, 2, 3, 4) },
  {
    name: "reuse",
    title: "engine B, another process, reuses what A stored",
    requests: ask("B", 1, 2, 3, 4, 5),
  },
  {
    name: "interleave",
    title: "both engines, turn about",
    requests: [...ask("A", 1), ...ask("B", 2), ...ask("A", 3), ...ask("B", 4), ...ask("A", 5, 2)],
  },
  {
    name: "corrupt",
    title: "before each request one bit of a stored block is flipped",
    requests: [...ask("B", 1), ...ask("A", 3), ...ask("B", 5)],
  },
  {
    name: "kill",
    title: "the daemon is killed (SIGKILL) under the first of these",
    requests: [...ask("A", 2), ...ask("B", 4), ...ask("A", 1)],
  },
  {
    name: "restart",
    title: "the daemon is back on the same directory",
    requests: [...ask("A", 1), ...ask("B", 3), ...ask("A", 2, 6), ...ask("B", 4, 5, 7)],
  },
];

const TOPICS = [
  "the weather over the pass",
  "a cairn on the ridge",
  "the depth of the snow",
  "which stone to place next",
  "the way down in fog",
  "who was here before us",
  "how long the walk takes",
  "what the marks mean",
];
const QUESTIONS = [
  "Tell me about",
  "What should I know of",
  "Remind me of",
  "Say more about",
  "Be brief on",
];
const RULES = [
  "Answer in plain words.",
  "Name what you do not know.",
  "Never guess at a path.",
  "Prefer the marked way.",
  "Keep to the question.",
  "Count the stones twice.",
  "Say when it is late.",
  "Mind the wind.",
];

/** The system prompt of a conversation: odd and even conversations share one each. About `length` characters. */
export function systemPrompt(conversation: number, length: number): string {
  const offset = conversation % 2;
  let text =
    offset === 1 ? "You guide walkers in the hills." : "You keep the log of a mountain hut.";
  for (let index = offset; text.length < length; index += 1 + offset) {
    text += ` ${RULES[index % RULES.length] ?? ""}`;
    if (index % 5 === 0) text += ` Rule ${index}.`;
  }
  return `${text.slice(0, length)}\n`;
}

/** What the user says in a turn (1, 2, …). */
export function userMessage(conversation: number, turn: number): string {
  const question = QUESTIONS[(conversation + turn) % QUESTIONS.length] ?? "";
  const topic = TOPICS[(conversation * 3 + turn) % TOPICS.length] ?? "";
  return `\n[${conversation}.${turn}] ${question} ${topic}, please.\n`;
}
