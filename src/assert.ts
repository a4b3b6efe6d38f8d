/**
 * Assertions stay on in production: a failed one is a bug in cairn, never bad input. Bad input gets a
 * CairnError (errors.ts). Messages are literals so that a passing assertion allocates nothing.
 */
export class AssertionFailure extends Error {
  override readonly name = "AssertionFailure";
}

export function assert(condition: boolean, message: string): asserts condition {
  if (!condition) throw new AssertionFailure(message);
}

/** Marks a branch that the types say cannot be reached. */
export function unreachable(_value: never, message: string): never {
  throw new AssertionFailure(message);
}
