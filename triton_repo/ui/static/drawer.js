// The drawer of one video: why it is here, what the ranker expects, how it got to its place.

import { get } from "./api.js";
import { byId, day, h, minutes, plural, whole } from "./dom.js";
import { art } from "./rows.js";

const SOURCES = {
  two_tower: ["Fits this person", "the two towers found it near the person's taste and this moment"],
  neighbour: ["Like what was watched", "it is a neighbour of one of the last watches"],
  trending: ["Trending", "it is watched most of late"],
  fresh: ["New release", "it was published lately"],
  popular: ["Popular", "it is watched most over the whole log"],
  continue: ["Begun", "it was begun and not finished"],
  explore: ["By chance", "its place was drawn, so that new videos get seen"],
};

const percent = (p) => (p >= 0.995 || p < 0.0005 ? `${(p * 100).toFixed(2)}%` : `${(p * 100).toFixed(1)}%`);

function meter(label, text, share, note) {
  return h(
    "div",
    { class: "meter" },
    h("dt", {}, label),
    h("dd", {}, h("strong", {}, text), note ? h("small", {}, note) : null),
    share === null ? null : h("span", { class: "bar", "aria-hidden": "true", vars: { "--share": Math.max(0, Math.min(1, share)) } }),
  );
}

function expects(shown, video, label) {
  const parts = [];
  if (shown.p_positive !== null) parts.push(meter(`P(${label ?? "positive"})`, percent(shown.p_positive), shown.p_positive, "if shown"));
  if (shown.p_watched !== null) parts.push(meter("P(watched)", percent(shown.p_watched), shown.p_watched, "of what retrieval returns"));
  if (shown.watch_s !== null) {
    const of = video.duration_s ? `of ${minutes(video.duration_s)}, if watched` : "if watched";
    parts.push(meter("Expected watch time", minutes(shown.watch_s), video.duration_s ? shown.watch_s / video.duration_s : null, of));
  }
  const score = shown.score === null ? "none" : shown.score.toFixed(3);
  parts.push(meter("Score", score, null, shown.score === null ? "this row has an order of its own" : "what the ranker sorts by"));
  return h("dl", { class: "meters" }, ...parts);
}

function sources(shown) {
  const like = shown.like.length ? `: ${shown.like.map((title) => `“${title}”`).join(", ")}` : "";
  return h(
    "ul",
    { class: "reasons" },
    ...shown.sources.map((name) => {
      const [title, why] = SOURCES[name] ?? [name, ""];
      return h("li", {}, h("strong", {}, title), h("span", {}, why + (name === "neighbour" ? like : "")));
    }),
  );
}

function journey(shown, row, page) {
  const steps = [];
  if (shown.rank === null) {
    steps.push(["Ranker alone", "not ranked", row.kind === "continue" ? "Continue watching is ordered by when it was watched" : "it filled the page"]);
  } else {
    steps.push(["Ranker alone", `#${shown.rank}`, `of ${whole(page.candidates)} candidates`]);
  }
  const inRow = `place ${row.videos.indexOf(shown) + 1} of “${row.title}”`;
  if (shown.rank === null) steps.push(["On this page", `#${shown.place}`, inRow]);
  else steps.push(["On this page", `#${shown.ranked_place}`, `of the ranked ones: ${inRow}`]);
  const moved = shown.rank === null ? 0 : shown.rank - shown.ranked_place;
  let change = "Rows and variety left it where the ranker had it.";
  if (moved > 0) change = `Rows and variety moved it ${plural(moved, "place")} up.`;
  if (moved < 0) change = `Rows and variety moved it ${plural(-moved, "place")} down.`;
  const chance = shown.propensity >= 1
    ? "Its place is not drawn: the same request gives the same place."
    : `Its place was drawn: 1 chance in ${Math.round(1 / shown.propensity)} (propensity ${shown.propensity.toFixed(4)}).`;
  return [
    h("ol", { class: "journey" }, ...steps.map(([name, value, note]) => h("li", {}, h("span", {}, name), h("strong", {}, value), h("small", {}, note)))),
    shown.rank === null ? null : h("p", {}, change),
    h("p", {}, chance),
  ];
}

function rules(page) {
  const { considered, removed, left } = page.rules;
  const lines = removed.map(({ rule, count }) => h("li", {}, h("span", {}, rule), h("strong", {}, whole(count))));
  return [
    h("p", {}, `The sources proposed ${plural(considered, "video")}; the rules left ${whole(left)}, quotas ${whole(page.candidates)} for the ranker.`),
    lines.length ? h("ul", { class: "removed" }, ...lines) : h("p", {}, "No rule removed any."),
    page.watched ? h("p", { class: "dim" }, `${plural(page.watched, "video")} watched before ${page.watched === 1 ? "is" : "are"} left out of the search itself.`) : null,
  ];
}

function where(details, at) {
  const place = details.everywhere || details.countries.length === 0 ? "every country" : details.countries.join(", ");
  const until = details.available_until === null ? "" : `, until ${day(details.available_until)}`;
  return h("p", { class: "dim" }, `May be shown in ${details.countries.length || details.everywhere ? place : "no country"}${until}. ${details.published ? `Published ${day(details.published)}, ${plural(Math.max(0, Math.floor((at - details.published) / 86400)), "day")} before this page.` : ""}`);
}

/** Show a video; `watch()` is called when it is watched and resolves when that is kept. */
export function openDrawer({ shown, row, page, video, label, watch, opener }) {
  const drawer = byId("drawer");
  const facts = [video.groups.join(", "), minutes(video.duration_s), video.maturity].filter(Boolean).join(" · ");
  const button = h("button", {
    type: "button", class: "primary", id: "watch",
    onclick: async () => {
      button.disabled = true;
      const isKept = await watch();
      if (isKept) drawer.close();
      else button.disabled = false;
    },
  }, "▶ Watch");
  const more = h("div");
  drawer.replaceChildren(
    h(
      "div",
      { class: "drawer-in" },
      h("button", { type: "button", class: "close", "aria-label": "Close", onclick: () => drawer.close() }, "×"),
      h("div", { class: "drawer-head" }, art(video), h("div", { class: "drawer-name" }, h("h2", { id: "drawer-title" }, video.title), h("p", { class: "dim" }, facts), button)),
      h("h3", {}, "Why it is here"), h("p", {}, `${row.title}. ${row.reason}.`), sources(shown),
      h("h3", {}, "What the ranker expects"), expects(shown, video, label),
      h("h3", {}, "From candidate to place"), ...journey(shown, row, page),
      h("h3", {}, "What the rules took"), ...rules(page), more,
    ),
  );
  drawer.onclose = () => opener.isConnected && opener.focus();
  drawer.onclick = (event) => event.target === drawer && drawer.close();
  drawer.showModal();
  drawer.scrollTop = 0;
  button.focus({ preventScroll: true });
  get("video", { id: video.id }).then((details) => more.replaceChildren(where(details, page.at))).catch(() => {});
}
