// The home page: controls, rows, scrolling on, and what a watch changed.

import { get, post } from "./api.js";
import { byId, h, moment, plural } from "./dom.js";
import { openDrawer } from "./drawer.js";
import { showHealth } from "./health.js";
import { arrows, reach, rowOf } from "./rows.js";

const STAGES = { query_tower: "query tower", retrieval: "retrieval", sources: "sources, rules", ranker: "ranker", page: "page" };
const STATUS = {
  unknown_user: "Nobody knows this user: a page for somebody new.",
  empty_history: "This user has watched nothing yet.",
  fewer_rows: "There is no more than this for this viewer.",
  state_unavailable: "The online state does not answer: what was watched since the export is not counted.",
  no_videos: "The rules allow nothing for this viewer.",
  cursor_expired: "A new bundle is live: the page begins anew.",
};

const state = { user: "", at: null, context: {}, page: null, before: null, asking: null, isMore: false };
let setup;

// --- controls ------------------------------------------------------------------------------------
const field = (label, ...inputs) => h("label", { class: "field" }, h("span", {}, label), ...inputs);

function choice(name, values, label, fallback) {
  const select = h("select", { name, id: `control-${name}`, onchange: () => { state.context[name] = select.value; load(); } });
  select.append(h("option", { value: "" }, fallback), ...values.map((value) => h("option", { value }, value)));
  select.value = state.context[name] ?? "";
  return field(label, select);
}

function devices({ name, values }) {
  const buttons = values.map((value) => h("button", {
    type: "button", role: "radio", "aria-checked": String(state.context[name] === value), "data-device": value,
    onclick: (event) => {
      state.context[name] = value;
      buttons.forEach((one) => one.setAttribute("aria-checked", String(one === event.currentTarget)));
      load();
    },
  }, value));
  return h("div", { class: "field" }, h("span", { id: "device-label" }, "Device"), h("div", { class: "segments", role: "radiogroup", "aria-labelledby": "device-label" }, ...buttons));
}

function time() {
  const input = h("input", { type: "datetime-local", id: "control-time", step: 60, onchange: () => {
    state.at = input.value ? Date.parse(`${input.value}Z`) / 1000 : null;
    load();
  } });
  const now = h("button", { type: "button", class: "quiet", id: "now", title: "One second after the last event of the log or of this user", onclick: () => { state.at = null; load(); } }, "Log's now");
  return h("div", { class: "field time" }, h("label", { for: "control-time" }, "Time, UTC"), h("div", { class: "joined" }, input, now));
}

function people(users) {
  const input = h("input", { id: "control-user", name: "user", list: "people", required: true, spellcheck: "false", onchange: () => choose(input.value) });
  const about = (one) => [plural(one.watches, "watch", "watches"), one.country, one.maturity && `up to ${one.maturity}`].filter(Boolean).join(", ");
  const list = h("datalist", { id: "people" }, ...users.map((one) => h("option", { value: one.id }, about(one))));
  input.value = state.user;
  const shuffle = h("button", { type: "button", class: "quiet", id: "next-user", title: "The next of the examples", onclick: () => {
    const at = users.findIndex((one) => one.id === state.user);
    choose(users[(at + 1) % users.length].id);
  } }, "Another");
  const choose = (user) => {
    if (!user.trim()) return;
    state.user = input.value = user.trim();
    load();
  };
  const more = h("p", { class: "about", id: "about-user" });
  state.about = () => {
    const known = users.find((one) => one.id === state.user);
    more.textContent = known ? about(known) : "";
  };
  const adjust = h("button", { type: "button", class: "quiet adjust", id: "adjust", "aria-expanded": "false", "aria-controls": "controls", onclick: () => {
    const isOpen = byId("controls").classList.toggle("is-open");
    adjust.setAttribute("aria-expanded", String(isOpen));
  } }, "Adjust");
  return h("div", { class: "field user" }, h("label", { for: "control-user" }, "User"), h("div", { class: "joined" }, input, users.length ? shuffle : null, adjust), list, more);
}

function controls(users) {
  const form = byId("controls");
  const others = setup.context.filter((one) => one.name !== setup.device);
  form.replaceChildren(
    people(users), devices(setup.context.find((one) => one.name === setup.device)), time(),
    ...others.map((one) => choice(one.name, one.values, one.name.replaceAll("_", " "), { country: "where they live", maturity: "their own limit" }[one.name] ?? "not known")),
  );
  form.addEventListener("submit", (event) => event.preventDefault());
}

// --- page ----------------------------------------------------------------------------------------
/** Ask for the first rows; with `note`, say what changed since the page before. */
async function load(note = null) {
  state.asking?.abort();
  const asking = (state.asking = new AbortController());
  const rows = byId("rows");
  rows.setAttribute("aria-busy", "true");
  state.isMore = false;
  try {
    const page = await get("page", { user: state.user, at: state.at, ...state.context }, asking.signal);
    const before = note ? state.before : null;
    state.page = page;
    compare(page, before);
    state.before = { rows: new Set(page.rows.map(rowKey)), places: new Map(page.rows.flatMap((row) => row.videos.map((one) => [one.id, one.ranked_place]))) };
    rows.replaceChildren(...page.rows.map((row) => rowOf(row, page.videos, (...chosen) => open(page, ...chosen))));
    const first = rows.querySelector(".tile");
    if (first) reach(first);
    notice(note && changed(note, page), STATUS[page.status]);
    strip(page);
    ends(page);
    remember();
  } catch (error) {
    if (error.name !== "AbortError") failed(error);
  } finally {
    if (state.asking === asking) rows.setAttribute("aria-busy", "false");
  }
}

const rowKey = (row) => `${row.kind}/${row.title}`;

function compare(page, before) {
  if (!before) return;
  for (const row of page.rows) {
    row.isNew = !before.rows.has(rowKey(row));
    for (const shown of row.videos) {
      shown.isNew = !before.places.has(shown.id);
      shown.up = row.kind === "top" && !shown.isNew ? before.places.get(shown.id) - shown.ranked_place : 0;
    }
  }
}

function changed(note, page) {
  const rows = page.rows.filter((row) => row.isNew).map((row) => `“${row.title}”`);
  const videos = page.rows.flatMap((row) => row.videos);
  const fresh = videos.filter((one) => one.isNew).length;
  const said = rows.length ? `${plural(rows.length, "row is", "rows are")} new: ${rows.slice(0, 3).join(", ")}${rows.length > 3 ? " …" : ""}.` : "No row is new.";
  const text = `${note} ${said} ${fresh} of ${plural(videos.length, "video")} were not on the page before.`;
  const go = h("button", { type: "button", class: "quiet", id: "to-new", onclick: () => {
    const row = document.querySelector(".row.is-new");
    row.scrollIntoView({ block: "center", behavior: "smooth" });
    row.querySelector(".tile").focus({ preventScroll: true });
  } }, "Show the new row");
  return [text, rows.length ? go : null];
}

function notice(...texts) {
  const element = byId("notice");
  const said = texts.filter(Boolean);
  element.hidden = said.length === 0;
  element.className = "notice";
  element.replaceChildren(...said.map((text) => h("p", {}, ...[text].flat())));
}

function failed(error) {
  const { expected, found, next } = error.parts ?? {};
  const element = byId("notice");
  element.hidden = false;
  element.className = "notice bad";
  const more = [found && `Found: ${found}`, expected && `Expected: ${expected}`, next && `Next: ${next}`].filter(Boolean);
  element.replaceChildren(h("p", {}, h("strong", {}, error.message)), ...more.map((text) => h("p", { class: "dim" }, text)));
  byId("rows").replaceChildren();
  byId("strip").replaceChildren();
  byId("more").hidden = byId("end").hidden = true;
}

function strip(page) {
  const stages = Object.entries(page.stage_us ?? {});
  const total = stages.reduce((sum, [, us]) => sum + us, 0);
  const bars = stages.map(([name, us]) => h("span", { class: "part", "data-stage": name, vars: { "--us": us } }));
  const words = stages.map(([name, us]) => h("li", { "data-stage": name }, STAGES[name] ?? name, h("b", {}, `${(us / 1000).toFixed(us < 995 ? 2 : 1)} ms`)));
  const videos = page.rows.reduce((sum, row) => sum + row.videos.length, 0);
  byId("strip").replaceChildren(
    h("p", { class: "sum" }, h("strong", {}, `${(total / 1000).toFixed(1)} ms`), ` in Triton · ${plural(page.rows.length, "row")}, ${plural(videos, "video")}, ${plural(page.candidates, "candidate")} ranked`, h("span", { class: "wide" }, ` · ${moment(page.at)} UTC · bundle ${page.version}`)),
    h("div", { class: "stack", "aria-hidden": "true" }, ...bars),
    h("ul", { class: "legend", "aria-label": "Milliseconds by stage" }, ...words),
  );
  const input = byId("control-time");
  input.value = new Date(page.at * 1000).toISOString().slice(0, 16);
  byId("now").setAttribute("aria-pressed", String(state.at === null));
  state.about();
}

function ends(page) {
  byId("more").hidden = !page.cursor;
  byId("end").hidden = Boolean(page.cursor) || page.rows.length === 0;
  byId("end").textContent = "That is all there is for this viewer.";
}

async function more() {
  const first = state.page;
  const cursor = first.next ?? first.cursor;
  if (state.isMore || !cursor) return;
  state.isMore = true;
  byId("more").disabled = true;
  try {
    const page = await get("page", { user: state.user, at: first.at, ...state.context, cursor }, state.asking.signal);
    if (state.page !== first) return;
    first.next = page.cursor;
    byId("rows").append(...page.rows.map((row) => rowOf(row, page.videos, (...chosen) => open(page, ...chosen))));
    ends(page);
    if (!page.rows.length) byId("end").hidden = false;
    if (!page.cursor) first.next = first.cursor = "";
  } catch (error) {
    if (error.name !== "AbortError") notice(error.message, error.parts?.next && `Next: ${error.parts.next}`);
  } finally {
    state.isMore = false;
    byId("more").disabled = false;
  }
}

// --- drawer and watch ----------------------------------------------------------------------------
function open(page, shown, row, opener) {
  const video = page.videos[shown.id];
  openDrawer({ shown, row, page, video, label: setup.label, opener, watch: () => watch(video) });
}

async function watch(video) {
  try {
    const kept = await post("watch", { user: state.user, video: video.id, at: state.at, watch_s: video.duration_s, label: 1 });
    if (state.at !== null) state.at = Math.max(state.at + 1, kept.next);
    await load(`Watched “${video.title}”.`);
    scrollTo({ top: 0 });
    return true;
  } catch (error) {
    byId("drawer").close();
    notice(error.message, error.parts?.next && `Next: ${error.parts.next}`);
    return false;
  }
}

// --- tabs, address, start ------------------------------------------------------------------------
function show(name) {
  for (const tab of document.querySelectorAll('[role="tab"]')) {
    const isChosen = tab.getAttribute("aria-controls") === name;
    tab.setAttribute("aria-selected", String(isChosen));
    tab.tabIndex = isChosen ? 0 : -1;
    byId(tab.getAttribute("aria-controls")).hidden = !isChosen;
  }
  byId("controls").hidden = name !== "home";
  if (name === "health") showHealth();
}

function tabs() {
  const all = [...document.querySelectorAll('[role="tab"]')];
  all.forEach((tab, at) => {
    tab.addEventListener("click", () => show(tab.getAttribute("aria-controls")));
    tab.addEventListener("keydown", (event) => {
      if (event.key !== "ArrowRight" && event.key !== "ArrowLeft") return;
      const other = all[(at + 1) % all.length];
      other.focus();
      show(other.getAttribute("aria-controls"));
    });
  });
}

function remember() {
  const given = { user: state.user, at: state.at ?? "", ...state.context };
  history.replaceState(null, "", `?${new URLSearchParams(Object.entries(given).filter(([, value]) => value))}`);
}

function recall(users) {
  const given = new URLSearchParams(location.search);
  state.user = given.get("user") ?? users[1]?.id ?? users[0]?.id ?? "1";
  state.at = Number(given.get("at")) || null;
  for (const { name } of setup.context) if (given.get(name)) state.context[name] = given.get(name);
  const small = matchMedia("(max-width: 600px)").matches && "phone" in setup.layouts;
  state.context[setup.device] ??= small ? "phone" : setup.default_device;
}

async function start() {
  tabs();
  arrows(byId("rows"));
  try {
    const [found, { users }] = await Promise.all([get("setup"), get("users")]);
    setup = found;
    byId("run").textContent = setup.name;
    recall(users);
    controls(users);
  } catch (error) {
    failed(error);
    return;
  }
  byId("more").addEventListener("click", more);
  new IntersectionObserver(([entry]) => entry.isIntersecting && more(), { rootMargin: "400px" }).observe(byId("more"));
  await load();
}

start();
