// Node 20 strips no types, and tsx's --import hook does not reach worker threads: the worker starts here,
// registers tsx itself where it was given a TypeScript module (the bundle has none), and loads that module.
if (process.argv[2].endsWith(".ts")) {
  const { register } = await import("tsx/esm/api");
  register();
}
await import(process.argv[2]);
