// Node 20 strips no types, and tsx's --import hook does not reach worker threads: the worker starts here
// and registers tsx itself before it loads the first TypeScript file.
import { register } from "tsx/esm/api";

register();
await import("./worker.ts");
