// Elements from plain values. Text is always set as text, never as markup.

const SVG = "http://www.w3.org/2000/svg";

/** An HTML element: h("p", { class: "note", onclick }, "text", child, …). */
export function h(name, attributes = {}, ...children) {
  return filled(document.createElement(name), attributes, children);
}

/** The same for SVG. */
export function s(name, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, name), attributes, children);
}

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "vars") Object.entries(value).forEach(([k, v]) => element.style.setProperty(k, v));
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((one) => one !== null && one !== undefined && one !== false));
  return element;
}

export const byId = (id) => document.getElementById(id);

/** 1234 as "1,234". */
export const whole = (number) => Math.round(number).toLocaleString("en");

export const plural = (count, one, many = `${one}s`) => `${whole(count)} ${count === 1 ? one : many}`;

/** Seconds as "47 min". */
export function minutes(seconds) {
  if (seconds === null || seconds === undefined) return null;
  if (seconds < 90) return `${Math.round(seconds)} s`;
  const all = Math.round(seconds / 60);
  return all < 60 ? `${all} min` : `${Math.floor(all / 60)} h ${String(all % 60).padStart(2, "0")}`;
}

/** Unix seconds as "12 Jan 2026", in UTC. */
export function day(seconds) {
  const options = { day: "numeric", month: "short", year: "numeric", timeZone: "UTC" };
  return new Date(seconds * 1000).toLocaleDateString("en-GB", options);
}

/** Unix seconds as "Fri 30 Jan 2026, 23:07". */
export function moment(seconds) {
  const options = { weekday: "short", hour: "2-digit", minute: "2-digit", timeZone: "UTC" };
  const [weekday, time] = new Date(seconds * 1000).toLocaleString("en-GB", options).split(/,? /);
  return `${weekday} ${day(seconds)}, ${time}`;
}
