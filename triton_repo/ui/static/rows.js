// Rows of posters: what is drawn, and how the arrows move among them.

import { faceOf, poster } from "./art.js";
import { h, minutes, plural } from "./dom.js";

const drawn = new IntersectionObserver(
  (entries) => entries.filter((entry) => entry.isIntersecting).forEach(({ target }) => {
    drawn.unobserve(target);
    target.prepend(poster(target.dataset.title, JSON.parse(target.dataset.kinds)));
  }),
  { rootMargin: "300px" },
);

/** The art of a video with its title on it; drawn when it comes near the screen. */
export function art(video) {
  const face = `face-${faceOf(video.title)}`;
  const long = video.title.length > 26 ? " long" : "";
  const element = h(
    "span",
    { class: `art ${face}${long}`, "data-title": video.title, "data-kinds": JSON.stringify(video.groups) },
    h("span", { class: "art-title" }, video.title),
  );
  drawn.observe(element);
  return element;
}

function tile(video, shown, row, open) {
  const badges = [];
  if (row.kind === "continue") badges.push(h("span", { class: "badge go", "aria-hidden": "true" }, "▶"));
  if (shown.sources.includes("explore")) badges.push(h("span", { class: "badge chance" }, "by chance"));
  if (shown.up > 1) badges.push(h("span", { class: "badge up" }, `▲ ${shown.up}`));
  if (shown.isNew) badges.push(h("span", { class: "badge fresh" }, "new here"));
  const [kind, second] = video.groups;
  const length = minutes(video.duration_s);
  const facts = [kind && [kind, second && h("span", { class: "wide" }, `, ${second}`)], length].filter(Boolean);
  const said = [video.title, kind, second, length, shown.isNew ? "new on this page" : "", shown.up > 1 ? `${shown.up} places up` : ""].filter(Boolean).join(", ");
  return h(
    "li",
    {},
    h(
      "button",
      {
        type: "button", class: `tile${shown.isNew ? " is-new" : ""}`, "aria-label": said, "aria-haspopup": "dialog",
        tabindex: "-1", "data-id": video.id, onclick: (event) => open(shown, row, event.currentTarget),
      },
      art(video),
      h("span", { class: "badges" }, ...badges),
      h("span", { class: "facts" }, ...facts.map((fact) => h("span", {}, ...[fact].flat())), "\u00a0"),
    ),
  );
}

/** A titled row. `open(shown, row, button)` is called for the tile that is chosen. */
export function rowOf(row, videos, open) {
  const list = h("ul", { class: "tiles", role: "list" }, ...row.videos.map((shown) => tile(videos[shown.id], shown, row, open)));
  const scroll = (way) => () => list.scrollBy({ left: way * list.clientWidth * 0.85, behavior: "smooth" });
  const arrow = (way, text, label) => h(
    "button", { type: "button", class: `arrow ${way < 0 ? "back" : "on"}`, tabindex: "-1", "aria-label": label, onclick: scroll(way) }, text,
  );
  return h(
    "section",
    { class: `row${row.isNew ? " is-new" : ""}`, "aria-label": row.title, "data-kind": row.kind },
    h(
      "header",
      { class: "row-head" },
      h("h2", {}, row.title),
      row.isNew ? h("span", { class: "badge fresh" }, "new row") : null,
      h("p", {}, row.reason, h("span", { class: "count" }, plural(row.videos.length, "video"))),
    ),
    h("div", { class: "shelf" }, arrow(-1, "‹", `${row.title}: back`), list, arrow(1, "›", `${row.title}: on`)),
  );
}

const tilesOf = (row) => [...row.querySelectorAll(".tile")];

/** One tile of all can be reached with Tab; the arrows do the rest. */
export function reach(tile) {
  tile.closest(".rows").querySelectorAll('.tile[tabindex="0"]').forEach((one) => one.setAttribute("tabindex", "-1"));
  tile.setAttribute("tabindex", "0");
}

/** Arrow keys, Home and End among the tiles of `rows`. */
export function arrows(rows) {
  rows.addEventListener("focusin", (event) => event.target.classList.contains("tile") && reach(event.target));
  rows.addEventListener("keydown", (event) => {
    const here = event.target.closest(".tile");
    const target = here && next(here, event.key);
    if (!target) return;
    event.preventDefault();
    target.focus({ preventScroll: true });
    target.scrollIntoView({ block: "nearest", inline: "nearest" });
  });
}

function next(here, key) {
  const row = here.closest(".row");
  const tiles = tilesOf(row);
  const at = tiles.indexOf(here);
  const beside = { ArrowRight: tiles[at + 1], ArrowLeft: tiles[at - 1], Home: tiles[0], End: tiles.at(-1) };
  if (key in beside) return beside[key] ?? here;
  const other = { ArrowDown: row.nextElementSibling, ArrowUp: row.previousElementSibling }[key];
  return other ? below(here, tilesOf(other)) : null;
}

/** The tile of another row that is nearest on the screen. */
function below(here, tiles) {
  const middle = (one) => one.getBoundingClientRect().left + one.offsetWidth / 2;
  const wanted = middle(here);
  return tiles.reduce((best, one) => (Math.abs(middle(one) - wanted) < Math.abs(middle(best) - wanted) ? one : best));
}
