/** The TypeScript client of cairn. See docs/protocol.md for the wire and client.ts for the promises. */
export { CairnClient } from "./client.ts";
export { CHAIN_KEY_BYTES, chainKeys } from "./keys.ts";
export { layoutPattern } from "./pattern.ts";
export { BatchPort } from "./batch.ts";
export { Window } from "./window.ts";
export type * from "./types.ts";
