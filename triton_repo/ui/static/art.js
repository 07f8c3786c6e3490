// A poster from a title and its kinds: the same one whenever it is drawn.

import { s } from "./dom.js";

const WIDTH = 200;
const HEIGHT = 300;

/** A 32-bit hash of text (FNV-1a). */
export function hash(text) {
  let value = 0x811c9dc5;
  for (const char of text) value = Math.imul(value ^ char.codePointAt(0), 0x01000193);
  return value >>> 0;
}

/** Numbers in [0, 1) from a seed (mulberry32). */
function random(seed) {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

/** Hue of a kind, 0 to 360; neighbours in the alphabet are far apart. */
export const hueOf = (kind) => (hash(kind) * 137.508) % 360;

const tone = (light, chroma, hue, alpha = 1) =>
  `oklch(${light} ${chroma} ${(((hue % 360) + 360) % 360).toFixed(1)} / ${alpha})`;

/** Which of the typefaces a title is set in. */
export const faceOf = (title) => hash(`${title}/face`) % 5;

/** An SVG poster without its title. */
export function poster(title, kinds) {
  const seed = hash(title);
  const next = random(seed);
  const hue = hueOf(kinds[0] ?? title) + (next() - 0.5) * 36;
  const other = kinds.length > 1 ? hueOf(kinds[1]) : hue + 50 + next() * 80;
  const colours = {
    deep: tone(0.2, 0.06, hue),
    base: tone(0.36 + next() * 0.06, 0.11, hue),
    mid: tone(0.56, 0.15, hue + 14),
    bright: tone(0.78, 0.15, other),
    pale: tone(0.93, 0.05, other),
  };
  const id = `g${seed.toString(36)}${Math.floor(Math.random() * 1e9).toString(36)}`;
  const motif = MOTIFS[(hash(kinds[0] ?? "") + (seed % 3)) % MOTIFS.length];
  const stops = [s("stop", { "stop-color": colours.base }), s("stop", { offset: 1, "stop-color": colours.deep })];
  return s(
    "svg",
    { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "xMidYMid slice", "aria-hidden": "true", focusable: "false" },
    s("linearGradient", { id, x1: 0, y1: 0, x2: next() * 0.6, y2: 1 }, ...stops),
    s("rect", { width: WIDTH, height: HEIGHT, fill: `url(#${id})` }),
    s("g", {}, ...motif(next, colours)),
  );
}

const circle = (cx, cy, r, more) => s("circle", { cx, cy, r, ...more });
const path = (d, more) => s("path", { d, ...more });

// Each gives shapes on a canvas of 200 x 300, the interest in its upper two thirds.
const MOTIFS = [horizon, beams, rings, dots, waves, blocks, skyline, bubbles, planet];

function horizon(next, c) {
  const cx = 50 + next() * 100;
  const shapes = [circle(cx, 95 + next() * 30, 38 + next() * 18, { fill: c.bright })];
  [[c.mid, 150, 0.9], [c.base, 185, 1], [c.deep, 220, 1]].forEach(([fill, y, opacity]) => {
    let d = `M0 ${y + next() * 20}`;
    for (let x = 0; x < WIDTH; x += 50) d += ` Q${x + 25} ${y - 40 + next() * 70} ${x + 50} ${y - 5 + next() * 25}`;
    shapes.push(path(`${d} V300 H0 Z`, { fill, opacity }));
  });
  return shapes;
}

function beams(next, c) {
  const x = 40 + next() * 120;
  const y = 20 + next() * 60;
  return Array.from({ length: 9 }, (_, i) => {
    const angle = (i / 9) * Math.PI * 2 + next() * 0.5;
    const spread = 0.07 + next() * 0.12;
    const end = (turn) => `${x + Math.cos(angle + turn) * 360} ${y + Math.sin(angle + turn) * 360}`;
    return path(`M${x} ${y} L${end(-spread)} L${end(spread)} Z`, { fill: [c.bright, c.mid, c.pale][i % 3], opacity: 0.25 + next() * 0.45 });
  });
}

function rings(next, c) {
  const cx = 30 + next() * 140;
  const cy = 70 + next() * 70;
  const width = 9 + next() * 7;
  return Array.from({ length: 7 }, (_, i) =>
    circle(cx, cy, 14 + i * (width + 9), { fill: "none", stroke: i % 2 ? c.mid : c.bright, "stroke-width": width, opacity: 1 - i * 0.12 }),
  );
}

function dots(next, c) {
  const lean = next();
  const shapes = [];
  for (let row = 0; row < 9; row += 1) {
    for (let column = 0; column < 8; column += 1) {
      const wave = Math.sin(column * (0.4 + lean) + row * 0.5 + lean * 9);
      shapes.push(circle(12 + column * 25, 16 + row * 25, 3.5 + 6.5 * Math.abs(wave), { fill: wave > 0 ? c.bright : c.mid, opacity: 0.9 - row * 0.07 }));
    }
  }
  return shapes;
}

function waves(next, c) {
  const fills = [c.bright, c.mid, c.base, c.deep];
  return fills.map((fill, i) => {
    const y = 60 + i * 48 + next() * 16;
    const rise = 18 + next() * 26;
    const shift = next() * 60;
    return path(
      `M${-shift} ${y} q35 ${-rise} 70 0 t70 0 t70 0 t70 0 V300 H0 Z`,
      { fill, opacity: 0.92 },
    );
  });
}

function blocks(next, c) {
  const shapes = [];
  const fills = [c.bright, c.mid, c.pale, c.base];
  for (let row = 0; row < 4; row += 1) {
    for (let column = 0; column < 4; column += 1) {
      const [x, y] = [column * 50, row * 50 + 8];
      const fill = fills[Math.floor(next() * 4)];
      const turn = Math.floor(next() * 4) * 90;
      const kind = next();
      if (kind < 0.2) continue;
      const transform = `rotate(${turn} ${x + 25} ${y + 25})`;
      if (kind < 0.7) shapes.push(path(`M${x} ${y} h50 a50 50 0 0 1 -50 50 z`, { fill, transform, opacity: 0.9 }));
      else if (kind < 0.85) shapes.push(circle(x + 25, y + 25, 18, { fill }));
      else shapes.push(path(`M${x} ${y} h50 l-50 50 z`, { fill, transform, opacity: 0.9 }));
    }
  }
  return shapes;
}

function skyline(next, c) {
  const shapes = [circle(40 + next() * 120, 60 + next() * 30, 24 + next() * 10, { fill: c.pale, opacity: 0.9 })];
  [[c.mid, 120], [c.base, 150], [c.deep, 180]].forEach(([fill, least]) => {
    for (let x = -8; x < WIDTH; ) {
      const width = 16 + next() * 22;
      const y = least + next() * 60;
      shapes.push(s("rect", { x, y, width: width - 2, height: 300 - y, fill }));
      x += width;
    }
  });
  return shapes;
}

function bubbles(next, c) {
  const fills = [c.bright, c.mid, c.pale, c.bright, c.base];
  return fills.map((fill, i) =>
    circle(20 + next() * 160, 25 + next() * 150, 70 - i * 10 + next() * 18, { fill, opacity: 0.42 + next() * 0.25 }),
  );
}

function planet(next, c) {
  const stars = Array.from({ length: 34 }, () => circle(next() * WIDTH, next() * 210, 0.7 + next() * 1.5, { fill: c.pale, opacity: 0.3 + next() * 0.7 }));
  const [cx, cy, r] = [60 + next() * 80, 95 + next() * 30, 40 + next() * 18];
  const tilt = -30 + next() * 60;
  const ring = { rx: r * 1.75, ry: r * 0.42, cx, cy, fill: "none", stroke: c.pale, "stroke-width": 4, transform: `rotate(${tilt} ${cx} ${cy})` };
  return [
    ...stars,
    circle(cx, cy, r, { fill: c.bright }),
    circle(cx + r * 0.28, cy + r * 0.22, r * 0.78, { fill: c.mid, opacity: 0.55 }),
    s("ellipse", { ...ring, opacity: 0.75 }),
  ];
}
