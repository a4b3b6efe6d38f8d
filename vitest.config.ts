import { defineConfig } from "vitest/config";

export default defineConfig({
  test: {
    include: ["test/**/*.test.ts"],
    pool: "forks",
    maxWorkers: 2,
    // Only a hang reaches them: these suites start daemons, on machines that do other things, too.
    testTimeout: 180_000,
    hookTimeout: 180_000,
    // Daemons and commands that tests start then run from the bundle, as they do where they are installed.
    globalSetup: ["test/bundle-setup.mjs"],
  },
});
