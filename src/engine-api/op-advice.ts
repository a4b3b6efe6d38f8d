/** TOUCH, HINT and PROVE: what an engine knows and the ledger does not. */
import { CairnError } from "../errors.ts";
import { LIMITS } from "../limits.ts";
import { type Block, NO_BLOCK } from "../ledger/types.ts";
import { METRIC } from "../observe/feed.ts";
import { HINT_KINDS, type HintRequest } from "../policy/hints.ts";
import {
  booleanField,
  bytesField,
  type ColdMap,
  decodeCold,
  integerField,
  textField,
} from "./codec.ts";
import type { EngineContext, InboundFrame } from "./context.ts";
import { OP } from "./protocol.ts";
import type { Namespace } from "./namespaces.ts";
import type { NamespaceView } from "./sessions.ts";

const keyWords = new Uint32Array(LIMITS.keyBytesMax / 4);
const keyBytes = new Uint8Array(keyWords.buffer);

/** Each key names the deepest block of a chain that was used. Reply count = blocks found. */
export function touch(context: EngineContext, frame: InboundFrame): void {
  const { namespace } = frame.instance.view(frame.header.namespace);
  const { count, tag } = frame.header;
  frame.expectCount(0);
  frame.expectBody(count * namespace.keyBytes);
  let touched = 0;
  for (let index = 0; index < count; index++) {
    const at = frame.bodyWords + index * namespace.keyWords;
    const block = context.ledger.find(namespace.index, frame.words, at);
    if (block === NO_BLOCK || !context.ledger.isVisible(block)) continue;
    context.ledger.touch(block);
    touched++;
  }
  if (!frame.noReply) context.out.acknowledge(frame.connection.id, OP.TOUCH, tag, 0, touched);
}

/** Advice about one chain; the policy says what it made of it. */
export function hint(context: EngineContext, frame: InboundFrame): void {
  const body = decodeCold(frame.coldBody());
  const view = frame.instance.view(integerField(body, "namespace", 1, 65_535));
  const request = hintRequest(body);
  const block = findKey(context, view.namespace, body);
  const resident = block !== NO_BLOCK && context.ledger.isVisible(block);
  const verdict = resident
    ? context.ledger.hint(block, request)
    : { verdict: "refused", reason: "the block is not resident" };
  if (frame.noReply) return;
  const { verdict: word, reason } = verdict;
  context.out.cold(frame.connection.id, OP.HINT, frame.header.tag, 0, { verdict: word, reason });
}

function hintRequest(body: ColdMap): HintRequest {
  const text = textField(body, "kind", 16);
  const kind = HINT_KINDS.find((candidate) => candidate === text);
  if (kind === undefined) throw new CairnError("malformedFrame", `hint kind ${text}`);
  const given = (name: string): boolean => body[name] !== undefined && body[name] !== null;
  return {
    kind,
    ...(given("ttlMs") ? { ttlMs: integerField(body, "ttlMs", 0, 2 ** 40) } : {}),
    ...(given("value") ? { value: integerField(body, "value", 0, 100) } : {}),
  };
}

/** @throws CairnError malformedFrame when the key has another length */
function findKey(context: EngineContext, namespace: Namespace, body: ColdMap): Block {
  const key = bytesField(body, "key");
  if (key.byteLength !== namespace.keyBytes) {
    throw new CairnError("malformedFrame", `key of ${key.byteLength} bytes`, namespace.keyBytes);
  }
  keyBytes.set(key);
  return context.ledger.find(namespace.index, keyWords, 0);
}

/** The verdict of an incarnation proof; it holds for the instance and namespace until the instance ends. */
export function prove(context: EngineContext, frame: InboundFrame): void {
  const body = decodeCold(frame.coldBody());
  const instance = frame.instance;
  const view = instance.view(integerField(body, "namespace", 1, 65_535));
  const block = findKey(context, view.namespace, body);
  const passed = booleanField(body, "ok");
  const asked = view.answered(bytesField(body, "key"));
  if (!asked || view.proven) {
    // A verdict on a block that nobody asked about says nothing, and hiding costs a namespace.
  } else if (!passed) {
    hideOlderBlocks(context, frame, view);
  } else {
    // The block may have left since it was compared; the comparison still counts.
    view.proven = true;
    context.feed.add(METRIC.proofsPassed, 1);
    if (block !== NO_BLOCK && context.ledger.isVisible(block)) context.ledger.touch(block);
  }
  const reply = { proven: view.proven };
  context.out.cold(frame.connection.id, OP.PROVE, frame.header.tag, 0, reply);
}

/**
 * This instance computes other bytes under the same names: from here on its handle means a fresh
 * namespace, in which it finds only what it stores itself. Others keep what they have.
 */
function hideOlderBlocks(context: EngineContext, frame: InboundFrame, view: NamespaceView): void {
  context.feed.add(METRIC.proofFailures, 1);
  context.leases.releaseIn(frame.instance, view.namespace);
  const { namespaces } = context;
  try {
    const before = view.namespace;
    view.namespace = namespaces.openVariant(before);
    namespaces.hold(view.namespace);
    if (before !== view.declared) namespaces.release(before);
  } catch (error) {
    if (!(error instanceof CairnError)) throw error;
    view.blind = true; // No namespace is left: nothing is a hit for this instance.
  }
}
