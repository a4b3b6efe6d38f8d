/** The nearest valid name to a misspelt one: for config keys, environment variables, flags and commands. */

/** Edit distance of two words (insert, delete, replace, swap of neighbours), capped at `limit` + 1. */
export function editDistance(left: string, right: string, limit: number): number {
  if (Math.abs(left.length - right.length) > limit) return limit + 1;
  let before: number[] = [];
  let above = Array.from({ length: right.length + 1 }, (_, index) => index);
  for (let i = 1; i <= left.length; i++) {
    const row = [i];
    for (let j = 1; j <= right.length; j++) {
      const cost = left[i - 1] === right[j - 1] ? 0 : 1;
      let best = Math.min(above[j]! + 1, row[j - 1]! + 1, above[j - 1]! + cost);
      const swapped =
        i > 1 && j > 1 && left[i - 1] === right[j - 2] && left[i - 2] === right[j - 1];
      if (swapped) best = Math.min(best, before[j - 2]! + 1);
      row.push(best);
    }
    before = above;
    above = row;
  }
  return Math.min(above[right.length]!, limit + 1);
}

/** Where a word of a name ends: before `_`, `.`, `-` and before a capital letter that follows a small one. */
const WORD_END = /(?=[_.-])|(?<=[a-z0-9])(?=[A-Z])/;

/** The name cut short after each of its words but the last, in small letters. */
function leads(name: string): string[] {
  const words = name.split(WORD_END);
  return words.slice(1).map((_, index) =>
    words
      .slice(0, index + 1)
      .join("")
      .toLowerCase(),
  );
}

/** Edit distance to the name, or to its first words, which costs one more. */
function distanceTo(wanted: string, candidate: string, limit: number): number {
  const name = candidate.toLowerCase();
  if (wanted.length >= 3 && name.startsWith(wanted)) return Math.min(limit, 1);
  let best = editDistance(wanted, name, limit);
  for (const lead of leads(candidate)) {
    if (best > 1) best = Math.min(best, editDistance(wanted, lead, limit) + 1);
  }
  return best;
}

/** The candidate nearest to `word`, or undefined when none is near enough to be meant. */
export function nearest(word: string, candidates: readonly string[]): string | undefined {
  const wanted = word.toLowerCase();
  const limit = Math.max(2, Math.floor(wanted.length / 3));
  let best: string | undefined;
  let bestDistance = limit + 1;
  for (const candidate of candidates) {
    const distance = distanceTo(wanted, candidate, limit);
    if (distance < bestDistance) {
      best = candidate;
      bestDistance = distance;
    }
  }
  return best;
}

/** `; did you mean "x"?`, or nothing. */
export function suggestion(word: string, candidates: readonly string[]): string {
  const found = nearest(word, candidates);
  return found === undefined ? "" : `; did you mean "${found}"?`;
}
