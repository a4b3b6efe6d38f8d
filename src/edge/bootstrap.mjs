// Node 20 strips no types, and tsx's --import hook does not reach worker threads: the worker starts here,
// registers tsx itself, and loads the TypeScript module it was given.
import { register } from "tsx/esm/api";

register();
await import(process.argv[2]);
