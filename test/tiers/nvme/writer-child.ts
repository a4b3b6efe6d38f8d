/** Commits index pages for ever and says so on stdout after each; its parent kills it. */
import { writeSync } from "node:fs";
import { PageWriter, PARENT } from "../../../tiers/nvme/index-pages.ts";
import { IndexStore, type PageWrite } from "../../../tiers/nvme/index-store.ts";

const store = await IndexStore.open(process.argv[2]!);
const writer = new PageWriter();
const key = Uint32Array.of(1, 2, 3, 4, 5, 6, 7, 8);

for (let generation = 1; ; generation++) {
  const pages: PageWrite[] = [];
  for (let i = 0; i < 40; i++) {
    const page = (generation * 7 + i * 13) % 3_000;
    writer.begin(page, 64);
    writer.add(0, 0, 0, 1, generation, 1, key, 0, PARENT.NONE, 0);
    pages.push({ key: page, bytes: writer.end() });
  }
  await store.write(pages, {});
  writeSync(1, pages.map((page) => `${page.key} ${generation}\n`).join(""));
}
