import { type Trace, TraceBuilder } from "../../bench/replay/trace.ts";

/** A workload of our own: conversations that grow turn by turn, share system prompts and come back at random. */
export function conversationLines(seed: number, requests: number): string[] {
  let state = seed;
  const random = (below: number): number => {
    state = (Math.imul(state, 1_103_515_245) + 12_345) >>> 0;
    return Math.floor((state / 2 ** 32) * below);
  };
  const chats: number[][] = [];
  let nextId = 100;
  const lines: string[] = [];
  for (let request = 0; request < requests; request += 1) {
    if (chats.length < 4 || random(3) === 0) chats.push(random(2) === 0 ? [0, 1] : [0, 1, 2, 3]);
    const chat = chats[Math.max(0, chats.length - 1 - random(12))] as number[];
    for (let block = random(6); block >= 0; block -= 1) chat.push((nextId += 1));
    const text = {
      timestamp: request,
      input_length: chat.length * 512,
      output_length: 1,
      hash_ids: chat,
    };
    lines.push(JSON.stringify(text));
  }
  return lines;
}

export function conversations(seed: number, requests: number): Trace {
  const builder = new TraceBuilder();
  conversationLines(seed, requests).forEach((line, index) => builder.add(line, index + 1));
  return builder.build();
}
