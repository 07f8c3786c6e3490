// The health tab: numbers with what they mean, and a plain word where there are too few.

import { get } from "./api.js";
import { byId, h, moment, plural, s, whole } from "./dom.js";

const WORDS = { steady: "steady", moved: "moved", drifted: "drifted", "too few": "too few to say", ok: "" };
const NAMES = {
  answer: "answer, explained", query_tower: "query tower", retrieval: "retrieval", sources: "sources, rules",
  ranker: "ranker", page: "page", score: "score", p_positive: "P(positive)", p_watched: "P(watched)", watch_s: "expected watch time",
};
const named = (name) => NAMES[name] ?? name.replaceAll("_", " ");
const missing = (part) => h("p", { class: "missing" }, `${part.missing}.`);

function card(title, about, ...children) {
  return h("article", { class: "card" }, h("h2", {}, title), about ? h("p", { class: "dim" }, about) : null, ...children);
}

function table(heads, rows) {
  const cell = (value, i) => h(i ? "td" : "th", i ? {} : { scope: "row" }, value);
  return h(
    "div", { class: "scroll", tabindex: "0", role: "group", "aria-label": heads.join(", ") },
    h("table", {}, h("thead", {}, h("tr", {}, ...heads.map((head) => h("th", { scope: "col" }, head)))), h("tbody", {}, ...rows.map((row) => h("tr", {}, ...row.map(cell))))),
  );
}

const pill = (verdict) => h("span", { class: `pill ${verdict.replace(" ", "-")}` }, WORDS[verdict] ?? verdict);

const one = (unit) => unit.replace(/s$/, "");

function driftTable(part) {
  if (part.missing) return missing(part);
  const most = Math.max(0, ...part.rows.map((row) => row.count));
  if (part.rows.every((row) => row.verdict === "too few")) {
    return h("p", { class: "missing" }, `Too few to say: ${plural(most, one(part.unit))} so far, judged from ${whole(part.least)} on (${part.rows.map((row) => named(row.column)).join(", ")}).`);
  }
  const rows = part.rows.map((row) => [named(row.column), row.verdict === "too few" ? "–" : row.psi.toFixed(3), whole(row.count), pill(row.verdict)]);
  return table(["column", "PSI", part.unit, ""], rows);
}

function calibration(part) {
  if (part.missing) return missing(part);
  const [size, pad] = [260, 34];
  const most = Math.max(0.05, ...part.bins.flatMap((bin) => [bin.predicted, bin.observed])) * 1.08;
  const x = (p) => pad + (p / most) * (size - pad - 8);
  const y = (p) => size - pad - (p / most) * (size - pad - 8);
  const points = part.bins.map((bin) => s("circle", { cx: x(bin.predicted), cy: y(bin.observed), r: 4.5, class: "point" }, s("title", {}, `predicted ${bin.predicted}, observed ${bin.observed}, ${bin.count} events`)));
  const ticks = [0, most / 2, most].flatMap((p) => [
    s("text", { x: x(p), y: size - 12, "text-anchor": p === most ? "end" : "middle" }, p.toFixed(2)),
    s("text", { x: pad - 6, y: y(p) + 4, "text-anchor": "end" }, p.toFixed(2)),
  ]);
  const plot = s(
    "svg", { viewBox: `0 0 ${size} ${size}`, class: "plot", role: "img", "aria-label": "Observed share against predicted chance, by bin" },
    s("path", { d: `M${x(0)} ${y(0)} L${x(most)} ${y(most)}`, class: "ideal" }), ...ticks, ...points,
  );
  return h("div", {}, plot, h("p", {}, `Mean gap ${part.error.toFixed(3)} over ${plural(part.count, "held-out event")}.`));
}

function split(part) {
  const seen = Object.entries(part.seen).map(([version, count]) => [`bundle ${version}`, whole(count)]);
  const parts = [];
  if (part.missing) parts.push(missing(part));
  else {
    const rows = part.serving.map((row) => [row.name, String(row.version), whole(row.users), row.share === null ? "–" : `${(row.share * 100).toFixed(1)}%`]);
    parts.push(table(["bundle", "version", "users answered", "share"], rows));
    parts.push(h("p", { class: "dim" }, `Lists since Triton's start; before the live one: ${part.previous ?? "none"}. ${part.note}.`));
  }
  if (seen.length) parts.push(table(["pages here were of", "pages"], seen));
  return h("div", {}, ...parts);
}

function latency(rows, triton) {
  const here = rows.length
    ? table([plural(rows[0].count, "page"), "p50 ms", "p99 ms"], rows.map((row) => [named(row.stage), row.p50_ms.toFixed(2), row.verdict === "ok" ? row.p99_ms.toFixed(2) : "too few"]))
    : h("p", { class: "missing" }, "No page was asked for yet.");
  const there = triton.missing ? missing(triton) : table(["Triton, since its start", "mean ms", "users"], triton.stages.map((row) => [named(row.stage), row.mean_ms.toFixed(2), whole(row.count)]));
  return [here, there];
}

function shown(value) {
  const { bundle, coverage, drift } = value;
  return [
    card("Bundle", null, table(["", ""], [
      ["version", String(bundle.version)], ["from", bundle.from], ["server", bundle.server], ["videos", whole(bundle.num_videos)],
      ["users", whole(bundle.num_users)], ["log ends", `${moment(bundle.log_end)} UTC`], ["diversity", bundle.diversity], ["places drawn by chance", String(bundle.explore_slots)],
    ])),
    card("A/B split", null, split(value.split)),
    card("Latency", "Milliseconds of each stage on the server. What the drawers tell is made on top of that, and only for this page: it is in the whole answer's time.", ...latency(value.latency, value.triton)),
    card("Coverage", `Share of the catalogue of ${plural(coverage.num_videos, "video")} that was on a page.`,
      table(["of", "pages", "videos", "share"], coverage.parts.map((part) => [part.of, whole(part.pages), whole(part.videos), `${(part.share * 100).toFixed(1)}%`]))),
    card("Calibration", "What the served ranker says of events that training did not see, and what happened.", calibration(value.calibration)),
    card("Drift of scores", "Pages seen here against pages for the log's own requests.", driftTable(drift.scores)),
    card("Drift of requests", "Requests seen here against the training part of the log. What is tried out here is chosen by hand, so it may well differ.", driftTable(drift.requests)),
    card("Drift of features", "The last days of the log against training: population stability index, below 0.1 steady, from 0.25 drifted. Counts grow with the log, and a few days have few weekdays: these move by themselves.", driftTable(drift.log)),
  ];
}

/** Ask and show; the first time the gateway reads the log, which takes a few seconds. */
export async function showHealth() {
  const panel = byId("health");
  if (!panel.firstChild) panel.append(h("p", { class: "loading" }, "Reading the log and asking for pages of its requests …"));
  panel.setAttribute("aria-busy", "true");
  try {
    const cards = shown(await get("health"));
    panel.replaceChildren(h("div", { class: "cards" }, ...cards));
  } catch (error) {
    panel.replaceChildren(h("p", { class: "missing" }, [error.message, error.parts?.next].filter(Boolean).join(". Next: ")));
  }
  panel.setAttribute("aria-busy", "false");
}
