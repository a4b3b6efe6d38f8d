/** Making, registering and proving windows. */
import { CairnError } from "../../src/errors.ts";
import { OP, type RegisterReply } from "../../src/engine-api/protocol.ts";
import type { CairnClient } from "./client.ts";
import type { LinkAddon } from "./link.ts";
import { layoutPattern } from "./pattern.ts";
import type { LayoutAdapter, WindowOptions } from "./types.ts";
import { Window } from "./window.ts";

const PAGE_BYTES = 4_096;
const adapters = new WeakMap<Window, LayoutAdapter>();

/** @throws CairnError of REGISTER or PROVE_LAYOUT */
export async function makeWindow(client: CairnClient, options: WindowOptions): Promise<Window> {
  const namespace = options.namespace ?? 0;
  const descriptor = client.namespace(namespace);
  const strideBytes = options.strideBytes ?? descriptor.rowBytes;
  const offsetBytes = options.offsetBytes ?? 0;
  const end = offsetBytes + strideBytes * (options.blocks - 1) + descriptor.rowBytes;
  const sizeBytes = Math.ceil(end / PAGE_BYTES) * PAGE_BYTES;
  const geometry = { blocks: options.blocks, strideBytes, offsetBytes, sizeBytes };
  let window: Window;
  if (options.make === "daemon") {
    window = await daemonMade(client, namespace, geometry);
  } else {
    const hugePages = options.hugePages ?? false;
    const { descriptor: memfd, buffer } = client.addon.clientMemfd(sizeBytes, hugePages);
    window = new Window(namespace, descriptor, geometry, memfd, buffer, hugePages);
    if (options.adapter !== undefined) adapters.set(window, options.adapter);
    await registerWindow(client, window);
    return window;
  }
  if (options.adapter !== undefined) adapters.set(window, options.adapter);
  await proveLayout(client, window, pendingProof.get(window));
  return window;
}

const pendingProof = new WeakMap<Window, RegisterReply>();

async function daemonMade(
  client: CairnClient,
  namespace: number,
  geometry: { blocks: number; strideBytes: number; offsetBytes: number; sizeBytes: number },
): Promise<Window> {
  let memfd = -1;
  const body = () => ({
    kind: "window",
    make: "daemon",
    namespace: client.handle(namespace),
    ...geometry,
    proof: true,
  });
  const reply = (await client.cold(OP.REGISTER, 0, body, -1, (descriptor) => {
    memfd = descriptor;
  })) as unknown as RegisterReply;
  if (memfd === -1) throw new CairnError("internal", "the daemon sent no descriptor");
  const buffer = client.addon.clientMap(memfd, geometry.sizeBytes);
  const window = new Window(namespace, client.namespace(namespace), geometry, memfd, buffer);
  window.region = reply.region;
  pendingProof.set(window, reply);
  return window;
}

/**
 * Registers a window whose memfd we hold: at first, and after every restart of the daemon. Its layout is proved once:
 * later the engine may be filling or reading the row that the patterns would go through.
 */
export async function registerWindow(client: CairnClient, window: Window): Promise<void> {
  const body = () => ({
    kind: "window",
    make: "client",
    namespace: client.handle(window.namespace),
    sizeBytes: window.sizeBytes,
    offsetBytes: window.offsetBytes,
    strideBytes: window.strideBytes,
    blocks: window.blocks,
    proof: !window.proven,
  });
  const reply = await client.cold(OP.REGISTER, 0, body, window.memfd);
  const registered = reply as unknown as RegisterReply;
  window.region = registered.region;
  if (window.proven) return;
  // Until it is answered, the daemon may write its pattern into a row.
  window.unsettled = true;
  await proveLayout(client, window, registered);
  window.unsettled = false;
}

/**
 * Gives a window new memory with the contents of the old, which is taken away from every view.
 * @throws an errno name; then the old memory is gone all the same
 */
export function renewWindow(addon: LinkAddon, window: Window): void {
  try {
    const { descriptor, buffer } = addon.clientMemfd(window.sizeBytes, window.hugePages);
    const fresh = new Uint8Array(buffer, 0, window.sizeBytes);
    fresh.set(window.bytes);
    discardWindow(addon, window);
    window.memfd = descriptor;
    window.bytes = fresh;
  } catch (error) {
    discardWindow(addon, window);
    throw error;
  }
}

/** Closes and detaches a window's memory: nobody here can see what a daemon still writes. */
export function discardWindow(addon: LinkAddon, window: Window): void {
  window.unsettled = false;
  if (window.memfd === -1) return;
  addon.closeDescriptor(window.memfd);
  window.memfd = -1;
  const { buffer } = window.bytes;
  if (buffer instanceof ArrayBuffer) addon.clientDetach(buffer);
}

/** Runs the pattern through the adapter both ways (docs/protocol.md, "Layout proof"). */
async function proveLayout(
  client: CairnClient,
  window: Window,
  registered: RegisterReply | undefined,
): Promise<void> {
  if (registered === undefined || !registered.proof) return;
  const { rowBytes } = window.descriptor;
  const row = window.row(registered.block);
  const saved = row.slice();
  const adapter = adapters.get(window);
  const first = layoutPattern(registered.seed, rowBytes);
  if (adapter === undefined) row.set(first);
  else adapter.gather(first, row);
  await client.cold(OP.PROVE_LAYOUT, registered.region, () => ({ block: registered.block }));
  const second = layoutPattern(registered.seed + 1, rowBytes);
  const found = adapter === undefined ? row : adapter.scatter(row);
  const equal = Buffer.compare(found, second) === 0;
  row.set(saved);
  window.proven = equal;
  if (equal) return;
  window.region = 0;
  await client.acknowledged(OP.UNREGISTER, registered.region).catch(() => undefined);
  throw new CairnError("layoutMismatch", "the scattered pattern differs");
}
