// The live page. It reads /v1/events (server-sent events) for everything that moves and asks /v1/stats
// every five seconds for the list of engines. Text is only ever set as text, never as markup.

const HISTORY_MAX = 120;
const EVENTS_MAX = 120;
const STATS_EVERY_MS = 5_000;
const CHART_WIDTH = 600;
const CHART_HEIGHT = 120;

/** Rows of the fault list: field of `totals`, words, whether a count above zero is worth a look. */
const FAULTS = [
  ["corruptBlocks", "corrupt blocks dropped", true],
  ["identityFailures", "slot identity failures", true],
  ["proofFailures", "incarnation proofs failed", true],
  ["deadlineMisses", "deadlines missed", true],
  ["fillTimeouts", "fills that never came", true],
  ["leasesExpired", "leases expired", true],
  ["fullRefusals", "blocks refused, tier full", true],
  ["chainMismatches", "chain mismatches", true],
  ["nvmeIoErrors", "disk errors", true],
  ["nvmeSyncFailures", "disk syncs failed", true],
  ["scrubFailures", "bad copies found at idle", true],
  ["remoteCorruptBlocks", "bad blocks in objects", true],
  ["remoteCorruptObjects", "bad objects", true],
  ["remoteMisplacedObjects", "objects under a wrong name", true],
  ["remoteLeftOut", "remote tier left out at the start", true],
  ["writeBackRefusals", "blocks not copied down", false],
  ["evictedUnbacked", "blocks evicted without a copy below", false],
  ["evictions", "copies evicted", false],
  ["recoveredBlocks", "blocks recovered at start", false],
  ["injectedFaults", "faults injected on purpose", false],
];

const digests = [];
const element = (id) => document.getElementById(id);
const setText = (id, text) => {
  element(id).textContent = text;
};

function make(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

function bytesText(bytes) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let value = bytes;
  let step = 0;
  while (value >= 1024 && step < units.length - 1) {
    value /= 1024;
    step += 1;
  }
  return `${value < 10 && step > 0 ? value.toFixed(1) : Math.round(value)} ${units[step]}`;
}

function rateText(bytesPerSecond) {
  if (bytesPerSecond >= 1e9) return `${(bytesPerSecond / 1e9).toFixed(2)} GB/s`;
  if (bytesPerSecond >= 1e6) return `${(bytesPerSecond / 1e6).toFixed(1)} MB/s`;
  return `${(bytesPerSecond / 1e3).toFixed(bytesPerSecond > 0 ? 1 : 0)} kB/s`;
}

function secondsText(seconds) {
  if (seconds >= 1) return `${seconds.toPrecision(3)} s`;
  if (seconds >= 1e-3) return `${(seconds * 1e3).toPrecision(3)} ms`;
  return `${Math.round(seconds * 1e6)} µs`;
}

const percentText = (share) => (share === null ? "–" : `${(share * 100).toFixed(1)} %`);
const countText = (count) => Math.round(count).toLocaleString("en");

function latencyText(latency) {
  if (latency === null) return "idle";
  return `p50 ${secondsText(latency.p50)} · p99 ${secondsText(latency.p99)}`;
}

function clockText(milliseconds) {
  return new Date(milliseconds).toTimeString().slice(0, 8);
}

function durationText(seconds) {
  const parts = [
    [Math.floor(seconds / 86_400), "d"],
    [Math.floor(seconds / 3_600) % 24, "h"],
    [Math.floor(seconds / 60) % 60, "min"],
  ].filter(([value]) => value > 0);
  if (parts.length === 0) return `${Math.floor(seconds)} s`;
  return parts.slice(0, 2).map(([value, unit]) => `${value} ${unit}`).join(" ");
}

function showTiles({ recent, hitRate, gauges }) {
  const { latencySeconds } = recent;
  setText("hitRate", percentText(recent.hitRate));
  setText("hitRateTotal", `since start ${percentText(hitRate)}`);
  setText("lookups", `${countText(recent.lookupsPerSecond)}/s`);
  setText("lookupLatency", latencyText(latencySeconds.lookupSeconds));
  setText("loadRate", rateText(recent.loadBytesPerSecond));
  setText("loadLatency", latencyText(latencySeconds.loadSeconds));
  setText("storeRate", rateText(recent.storeBytesPerSecond));
  setText("storeLatency", latencyText(latencySeconds.storeSeconds));
  setText("instances", countText(gauges.instances));
  setText("leases", `${countText(gauges.leases)} leases · ${bytesText(gauges.pinnedBytes)} pinned`);
  const state = gauges.ready === 1 ? "serving" : "starting";
  element("state").dataset.state = state;
  setText("state", state);
}

function tierRow(name) {
  const row = make("div", "tier");
  row.dataset.tier = name;
  const track = make("div", "track");
  track.append(make("div", "fill"));
  row.append(make("span", "name", name), track, make("span", "amount"), make("span", "more muted"));
  return row;
}

function showTiers(tiers, gauges) {
  const box = element("tiers");
  if (tiers.length === 0) return;
  if (box.querySelectorAll(".tier").length !== tiers.length)
    box.replaceChildren(...tiers.map(({ tier }) => tierRow(tier)));
  tiers.forEach((tier, index) => {
    const row = box.children[index];
    const share = tier.capacityBytes > 0 ? tier.usedBytes / tier.capacityBytes : 0;
    row.querySelector(".fill").style.width = `${Math.min(100, share * 100).toFixed(2)}%`;
    row.querySelector(".amount").textContent =
      `${bytesText(tier.usedBytes)} of ${bytesText(tier.capacityBytes)} (${percentText(share)})`;
    const orphans = tier.tier === "dram" && gauges.orphans > 0 ? ` · ${countText(gauges.orphans)} orphans` : "";
    row.querySelector(".more").textContent =
      `${countText(tier.visibleBlocks)} blocks readable of ${countText(tier.blocks)} · ` +
      `${countText(tier.slotsUsed)} of ${countText(tier.slots)} slots${orphans}`;
  });
}

const HEALTH_LEVEL = { ok: "good", slow: "warn", readOnly: "warn", fenced: "bad" };

function healthWord(health) {
  return health === "readOnly" ? "read-only" : health;
}

function healthCell({ health, full, rebuilding, preparing }) {
  const words = [healthWord(health)];
  if (full) words.push("full");
  if (rebuilding) words.push("rebuilding its index");
  if (preparing > 0) words.push(`preparing ${preparing} segments`);
  const cell = make("td", "health", words.join(", "));
  cell.dataset.level = full ? "warn" : (HEALTH_LEVEL[health] ?? "warn");
  return cell;
}

function lifeText(days) {
  if (days === null) return "–";
  return days > 730 ? `${Math.round(days / 365)} years` : `${Math.round(days)} days`;
}

function deviceRow(device) {
  const row = make("tr");
  const budget = device.writeBudgetBytes > 0 ? ` of ${bytesText(device.writeBudgetBytes)}` : "";
  const share = device.capacityBytes > 0 ? device.usedBytes / device.capacityBytes : 0;
  const figures = [
    `${bytesText(device.usedBytes)} of ${bytesText(device.capacityBytes)} (${percentText(share)})`,
    rateText(device.readBytesPerSecond),
    rateText(device.writeBytesPerSecond),
    `${countText(device.queuedReads)} reads, ${countText(device.queuedWrites)} writes`,
    countText(device.inFlight),
    `${bytesText(device.writtenPerDayBytes)}${budget}`,
    lifeText(device.lifeDays),
  ];
  row.append(make("td", "", device.directory), healthCell(device));
  row.append(...figures.map((text) => make("td", "number", text)));
  return row;
}

function remoteText(remote, totals) {
  if (remote === null) return "";
  const flow = `from it ${rateText(remote.receivedBytesPerSecond)}, to it ${rateText(remote.sentBytesPerSecond)}`;
  const blocks = `${countText(totals.remoteFetchedBlocks)} blocks fetched`;
  const store = `Remote store: ${healthWord(remote.health)}`;
  const moving = `${countText(remote.transfers)} transfers, ${countText(remote.waiting)} waiting`;
  return `${store} · ${flow} · ${moving} · ${countText(remote.uploadsWaiting)} chunks to store · ${blocks}`;
}

function diskText({ nvmeReadSeconds, nvmeWriteSeconds, nvmeCommitSeconds }) {
  const reads = `Disk reads ${latencyText(nvmeReadSeconds)}`;
  const writes = `writes ${latencyText(nvmeWriteSeconds)}`;
  return `${reads} — ${writes} — written to durable ${latencyText(nvmeCommitSeconds)}`;
}

function showLower({ devices, remote, totals, recent, gauges }) {
  element("lower").hidden = devices.length === 0 && remote === null && gauges.nvmeLeftOut === 0;
  element("devices").replaceChildren(...devices.map(deviceRow));
  const left = gauges.nvmeLeftOut > 0 ? `${countText(gauges.nvmeLeftOut)} disks left out, since they could not be opened` : "";
  setText("diskLatency", devices.length === 0 ? left : [diskText(recent.latencySeconds), left].filter(Boolean).join(" — "));
  setText("remote", remoteText(remote, totals));
  setText(
    "movement",
    `${countText(totals.writtenBackBlocks)} blocks copied down · ${countText(totals.promotedBlocks)} brought up · ` +
      `${countText(totals.passThroughBlocks)} read past DRAM`,
  );
}

function line(values, high, className) {
  const step = CHART_WIDTH / (HISTORY_MAX - 1);
  let path = "";
  let pen = "M";
  values.forEach((value, index) => {
    if (value === null) {
      pen = "M";
      return;
    }
    const x = CHART_WIDTH - (values.length - 1 - index) * step;
    const y = CHART_HEIGHT - 3 - (high > 0 ? value / high : 0) * (CHART_HEIGHT - 6);
    path += `${pen}${x.toFixed(1)} ${y.toFixed(1)}`;
    pen = "L";
  });
  const node = document.createElementNS("http://www.w3.org/2000/svg", "path");
  node.setAttribute("d", path);
  node.setAttribute("class", className);
  return node;
}

function showCharts() {
  const hits = digests.map(({ recent }) => recent.hitRate);
  element("hitChart").replaceChildren(line(hits, 1, "load"));
  const loads = digests.map(({ recent }) => recent.loadBytesPerSecond);
  const stores = digests.map(({ recent }) => recent.storeBytesPerSecond);
  const high = Math.max(1, ...loads, ...stores);
  setText("bandHigh", rateText(high));
  element("bandChart").replaceChildren(line(stores, high, "store"), line(loads, high, "load"));
}

function showFaults(totals) {
  const rows = FAULTS.flatMap(([field, label, alarming]) => {
    const value = make("dd", "", countText(totals[field]));
    value.dataset.level = alarming && totals[field] > 0 ? "warn" : "quiet";
    return [make("dt", "", label), value];
  });
  element("faults").replaceChildren(...rows);
}

function show(digest) {
  showTiles(digest);
  showTiers(digest.tiers, digest.gauges);
  showLower(digest);
  showCharts();
  showFaults(digest.totals);
}

function addEvent(atMs, text, level) {
  const list = element("events");
  const row = make("li");
  row.append(make("time", "", clockText(atMs)), make("span", level, text));
  list.querySelector("li.muted")?.remove();
  list.prepend(row);
  while (list.children.length > EVENTS_MAX) list.lastChild.remove();
}

function showBlocks({ atMs, stored, removed, lost, newest }) {
  const counts = [];
  if (stored > 0) counts.push(`${countText(stored)} stored`);
  if (removed > 0) counts.push(`${countText(removed)} gone`);
  if (lost > 0) counts.push(`${countText(lost)} more, not listed`);
  const last = newest.at(-1);
  const key = last === undefined ? "" : ` · last ${last.key.slice(-16)} in ${last.tier}`;
  addEvent(atMs, `blocks: ${counts.join(", ")}${key}`, "");
}

function showEngines(instances) {
  const rows = instances.map((one) => {
    const row = make("tr");
    row.append(make("td", "", one.engineId), make("td", "", one.engine), make("td", "", one.tenant));
    const figures = [
      countText(one.connections),
      countText(one.leases),
      bytesText(one.pinnedBytes),
      bytesText(one.windowBytes),
      countText(one.jobs),
      `${(one.heartbeatAgeMs / 1000).toFixed(1)} s ago`,
    ];
    row.append(...figures.map((text) => make("td", "number", text)));
    return row;
  });
  if (rows.length === 0) {
    const cell = make("td", "muted", "No engine is connected.");
    cell.colSpan = 9;
    rows.push(make("tr"));
    rows[0].append(cell);
  }
  element("engines").replaceChildren(...rows);
}

async function pollStats() {
  try {
    const answer = await fetch("/v1/stats");
    if (answer.ok) {
      const stats = await answer.json();
      setText("node", `${stats.node} · ${stats.version}`);
      setText("uptime", `up ${durationText(stats.uptimeSeconds)}`);
      showEngines(stats.instances);
    }
  } catch {
    // The event stream shows that the daemon is gone; the next poll asks again.
  }
  setTimeout(pollStats, STATS_EVERY_MS);
}

function listen() {
  const source = new EventSource("/v1/events");
  source.addEventListener("history", (event) => {
    const { digests: past, notices } = JSON.parse(event.data);
    digests.splice(0, digests.length, ...past);
    element("events").replaceChildren();
    for (const { atMs, text, level } of notices) addEvent(atMs, text, level);
    if (digests.length > 0) show(digests.at(-1));
  });
  source.addEventListener("digest", (event) => {
    digests.push(JSON.parse(event.data));
    if (digests.length > HISTORY_MAX) digests.shift();
    show(digests.at(-1));
  });
  source.addEventListener("blocks", (event) => showBlocks(JSON.parse(event.data)));
  source.addEventListener("notice", (event) => {
    const { atMs, text, level } = JSON.parse(event.data);
    addEvent(atMs, text, level);
  });
  source.addEventListener("error", () => {
    element("state").dataset.state = "lost";
    setText("state", "no connection");
    // A refused or overloaded stream is not retried by the browser itself.
    if (source.readyState === EventSource.CLOSED) setTimeout(listen, 3_000);
  });
}

listen();
void pollStats();
