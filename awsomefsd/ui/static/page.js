// Keeps a page fresh, and draws the charts.  Nothing of what the server says is taken for a script or for markup but the page itself.
"use strict";

const REFRESH_MS = 5000;
const HEIGHT = 180, LEFT = 66, RIGHT = 10, TOP = 10, BOTTOM = 24, WIDTH_LEAST = 220;
const SVG = "http://www.w3.org/2000/svg";
let paused = false;
let shownAt = new Date();
let points = null; // of all charts, as they were told last

function clock(date) {
  return date.toLocaleTimeString(undefined, { hour12: false });
}

function notice(words) {
  const place = document.getElementById("notice");
  const said = place.textContent;
  if (said === words) return;
  place.replaceChildren();
  if (!words) return;
  const line = document.createElement("p");
  line.textContent = words;
  place.append(line);
}

// --- charts -----------------------------------------------------------------------------------------------------------------

function element(name, attributes, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function figure(value, unit) {
  if (unit.startsWith("bytes")) {
    const names = ["B", "KiB", "MiB", "GiB", "TiB"];
    let step = 0;
    while (value >= 1024 && step < names.length - 1) { value /= 1024; step += 1; }
    return `${value >= 10 || step === 0 ? value.toFixed(0) : value.toFixed(1)} ${names[step]}${unit === "bytes" ? "" : "/s"}`;
  }
  const digits = value >= 100 ? 0 : value >= 10 ? 1 : 2;
  return `${Number(value.toFixed(digits))}${unit === "ms" ? " ms" : "/s"}`;
}

// The top of an axis: the least round figure that is not less.
function roundUp(value, unit) {
  if (unit.startsWith("bytes")) return 2 ** Math.max(10, Math.ceil(Math.log2(Math.max(value, 1))));
  if (value <= 0) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * power).find((bound) => bound >= value);
}

// The points of a line, in pieces: where nobody looked for a while there is a gap, and no line.
function pieces(at, values, sample, x, y) {
  const found = [];
  at.forEach((moment, number) => {
    const point = `${x(moment).toFixed(1)},${y(values[number]).toFixed(1)}`;
    if (number && moment - at[number - 1] < 3 * sample) found[found.length - 1].push(point);
    else found.push([point]);
  });
  return found;
}

function axes(width, top, chart, first, last) {
  const bottom = HEIGHT - BOTTOM;
  const made = [];
  for (const part of [0, 0.5, 1]) {
    const height = bottom - part * (bottom - TOP);
    made.push(element("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: height, y2: height }));
    made.push(element("text", { x: LEFT - 6, y: height + 4, "text-anchor": "end" }, figure(part * top, chart.unit)));
  }
  made.push(element("text", { x: LEFT, y: HEIGHT - 6 }, clock(new Date(first * 1000))));
  made.push(element("text", { x: width - RIGHT, y: HEIGHT - 6, "text-anchor": "end" }, clock(new Date(last * 1000))));
  return made;
}

function legend(chart) {
  const list = document.createElement("ul");
  list.className = "legend";
  chart.series.forEach((series, number) => {
    const entry = document.createElement("li");
    const line = element("line", { class: `line line${number}`, x1: 0, x2: 28, y1: 4, y2: 4 });
    const latest = series.values[series.values.length - 1];
    const highest = Math.max(...series.values);
    entry.append(element("svg", { viewBox: "0 0 28 8", "aria-hidden": "true" }, line));
    entry.append(`${series.name}: ${figure(latest, chart.unit)}, highest ${figure(highest, chart.unit)}`);
    list.append(entry);
  });
  return list;
}

function draw(place, told) {
  const chart = told.charts.find((one) => one.name === place.dataset.chart);
  if (!chart || told.at.length < 2) {
    place.textContent = "The first points come within half a minute.";
    return;
  }
  const first = told.at[0], last = told.at[told.at.length - 1];
  const top = roundUp(Math.max(...chart.series.flatMap((series) => series.values)), chart.unit);
  const width = Math.max(place.clientWidth, WIDTH_LEAST); // one pixel is one pixel: letters have one size everywhere
  const x = (moment) => LEFT + ((moment - first) / (last - first || 1)) * (width - LEFT - RIGHT);
  const y = (value) => HEIGHT - BOTTOM - (value / top) * (HEIGHT - BOTTOM - TOP);
  const title = `${chart.title}, from ${clock(new Date(first * 1000))} to ${clock(new Date(last * 1000))}; the list below has the figures`;
  const svg = element("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", "aria-label": title }, ...axes(width, top, chart, first, last));
  chart.series.forEach((series, number) => {
    for (const points of pieces(told.at, series.values, told.sample_s, x, y)) {
      svg.append(element("polyline", { class: `line line${number}`, points: points.join(" ") }));
    }
  });
  place.replaceChildren(svg, legend(chart));
}

// --- freshness --------------------------------------------------------------------------------------------------------------

async function get(path) {
  const answer = await fetch(path, { redirect: "manual", headers: { "X-Requested-With": "page" } });
  if (answer.type === "opaqueredirect" || answer.status === 401) {
    location.assign("/sign-in");
    throw new Error("signed out");
  }
  return answer;
}

function replace(fresh) {
  const main = document.getElementById("main");
  const focusable = "a, button, [tabindex]";
  const held = [...main.querySelectorAll(focusable)].indexOf(document.activeElement);
  main.replaceChildren(...fresh.childNodes);
  if (held >= 0) {
    const found = main.querySelectorAll(focusable)[held];
    (found || main).focus({ preventScroll: true });
  }
}

function reading() {
  const selection = document.getSelection();
  return paused || document.hidden || (selection && !selection.isCollapsed);
}

async function readPoints() {
  if (!document.querySelector("[data-chart]")) return;
  const answer = await get("/api/charts");
  if (answer.ok) points = await answer.json();
}

function drawAll() {
  if (points) for (const place of document.querySelectorAll("[data-chart]")) draw(place, points);
}

async function refresh() {
  if (reading()) return;
  try {
    const answer = await get(location.pathname);
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html").getElementById("main");
    await readPoints();
    if (fresh && !reading()) {
      replace(fresh);
      drawAll();
      shownAt = new Date();
      notice("");
    }
  } catch (err) {
    notice(`The server of this page does not answer. What is shown is of ${clock(shownAt)}.`);
  }
}

function pauseButton() {
  const button = document.createElement("button");
  button.type = "button";
  const show = () => {
    button.textContent = paused ? "Refresh" : "Pause";
    button.setAttribute("aria-label", paused ? "Refresh this page again every five seconds" : "Stop refreshing this page");
  };
  button.addEventListener("click", () => {
    paused = !paused;
    show();
    if (!paused) refresh();
  });
  show();
  document.getElementById("tools").prepend(button);
}

async function loop() {
  await refresh();
  setTimeout(loop, REFRESH_MS);
}

if (document.getElementById("tools")) {
  pauseButton();
  readPoints().then(drawAll, () => {});
  window.addEventListener("resize", drawAll);
  setTimeout(loop, REFRESH_MS);
}
