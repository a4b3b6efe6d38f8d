/** Node as `npm start` starts it, for whoever starts a daemon as a child: what is tested and measured is what runs. */
import { fileURLToPath } from "node:url";

/** Node's options and the launcher; the words of a command line come after them. */
export const CAIRN: readonly string[] = [
  "--no-memory-reducer",
  fileURLToPath(new URL("./launch.mjs", import.meta.url)),
];
/** Laid over the environment; libuv reads it before the first line of a program runs. */
export const CAIRN_ENVIRONMENT = { UV_THREADPOOL_SIZE: "16" } as const;
