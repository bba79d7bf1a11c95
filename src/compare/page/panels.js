// The plots' frame: colors and shapes, a panel with its switches, caption, values and CSV, drawn when it comes near or is printed.

const SHAPES = {
  circle: "M-6,0a6,6 0 1,0 12,0a6,6 0 1,0 -12,0",
  square: "M-6,-6H6V6H-6Z",
  diamond: "M0,-8L8,0L0,8L-8,0Z",
  cross: "M-2.5,-7H2.5V-2.5H7V2.5H2.5V7H-2.5V2.5H-7V-2.5H-2.5Z",
  x: "M0,3.5L4,7.5L7.5,4L3.5,0L7.5,-4L4,-7.5L0,-3.5L-4,-7.5L-7.5,-4L-3.5,0L-7.5,4L-4,7.5Z",
  "triangle-up": "M0,-7L7,6H-7Z",
  "triangle-down": "M0,7L7,-6H-7Z",
  "triangle-left": "M-7,0L6,-7V7Z",
  "triangle-right": "M7,0L-6,-7V7Z",
  pentagon: "M0,-7.5L7.1,-2.3L4.4,6.1H-4.4L-7.1,-2.3Z",
  hexagon: "M0,-7.5L6.5,-3.75V3.75L0,7.5L-6.5,3.75V-3.75Z",
  hexagon2: "M-7.5,0L-3.75,-6.5H3.75L7.5,0L3.75,6.5H-3.75Z",
  star: "M0,-8L2,-2.6L7.6,-2.5L3.1,1L4.7,6.5L0,3.2L-4.7,6.5L-3.1,1L-7.6,-2.5L-2,-2.6Z",
  "line-ew": "M-8,-1.6H8V1.6H-8Z",
};
const SVG = "http://www.w3.org/2000/svg";
const NEUTRAL = {light: "#5f6773", dark: "#a4acb8", symbol: "circle"};
const NEAR = "600px"; // a panel is drawn when it is this near to the window
const WARM_UP = 800; // milliseconds after the table is ready in which the reader reads and the bundle is parsed
const PAPER = 640; // pixels: as wide as a plot may be on a printed page, A4 or Letter with margins
const MOST_VALUES = 500; // lines of a plot's values on the page
const HEX_COLOR = /^#[0-9a-f]{6}$/i;

function styleOf(styles, series) {
  const style = styles.get(series);
  const color = mode => (HEX_COLOR.test(style[mode]) ? style[mode] : NEUTRAL[mode]);
  return {light: color("light"), dark: color("dark"), symbol: Object.hasOwn(SHAPES, style.symbol) ? style.symbol : "circle"};
}

// Series to style. One that has none gets the neutral color and a shape of its own, as far as they go.
function completeStyles(given, series) {
  const styles = new Map(Object.entries(given));
  const shapes = Object.keys(SHAPES);
  const missing = [...new Set(series)].filter(name => !styles.has(name));
  missing.forEach((name, index) => styles.set(name, {...NEUTRAL, symbol: shapes[index % shapes.length]}));
  return styles;
}

function swatch(styles, series) {
  const style = styleOf(styles, series);
  const drawing = document.createElementNS(SVG, "svg");
  drawing.setAttribute("viewBox", "-9 -9 18 18");
  drawing.setAttribute("class", "swatch");
  drawing.setAttribute("aria-hidden", "true");
  drawing.style.setProperty("--light", style.light);
  drawing.style.setProperty("--dark", style.dark);
  const shape = document.createElementNS(SVG, "path");
  shape.setAttribute("d", SHAPES[style.symbol]);
  drawing.append(shape);
  return drawing;
}

// The bundle is text until the first plot is needed: parsing it would keep the table waiting.
function loadPlotly() {
  if (!window.Plotly) document.head.append(Object.assign(document.createElement("script"), {
    textContent: document.getElementById("plotly").textContent,
  }));
  return window.Plotly;
}

// Quoted as RFC 4180 has it; a text that a spreadsheet would run begins with an apostrophe (OWASP, CSV injection).
function csvText(head, rows) {
  const field = value => {
    if (value === null || value === undefined) return "";
    if (typeof value === "number") return String(value);
    const text = /^[=+\-@\t\r]/.test(value) ? `'${value}` : String(value);
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return [head, ...rows].map(row => row.map(field).join(",") + "\r\n").join("");
}

function download(name, text) {
  const address = URL.createObjectURL(new Blob([text], {type: "text/csv;charset=utf-8"}));
  element("a", {href: address, download: name}).click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
}

// One choice of a few as radio buttons, of many as a list. Calls back with the value chosen.
function makeChoice(name, {label, options}, changed) {
  if (options.length > 6) {
    const select = element("select", {}, ...options.map(([value, text]) => element("option", {value}, text)));
    select.addEventListener("change", () => changed(select.value));
    return element("label", {class: "choice"}, element("span", {}, label), select);
  }
  const radios = options.map(([value, text], index) => {
    const radio = element("input", {type: "radio", name, value});
    radio.checked = index === 0;
    radio.addEventListener("change", () => changed(value));
    return element("label", {}, radio, element("span", {}, text));
  });
  const title = element("span", {"aria-hidden": "true"}, label);
  return element("div", {class: "choice", role: "radiogroup", "aria-label": label}, title, ...radios);
}

function valueTable(head, all) {
  const rows = all.slice(0, MOST_VALUES);
  const cell = value => element("td", typeof value === "number" ? {class: "numeric"} : {}, String(value ?? "–"));
  const table = element("table", {},
    element("thead", {}, element("tr", {}, ...head.map(name => element("th", {scope: "col"}, name)))),
    element("tbody", {}, ...rows.map(row => element("tr", {}, ...row.map(cell)))));
  const more = element("p", {class: "count"}, `The first ${rows.length} of ${all.length} lines; the CSV has all.`);
  return all.length > rows.length ? [more, table] : [table];
}

function makePanel(spec, board) {
  const choice = {};
  const drawing = element("div", {class: "drawing", role: "img"});
  const caption = element("figcaption", {id: `caption-${spec.name}`});
  const values = element("div", {class: "scroll values"});
  const details = element("details", {}, element("summary", {}, "Values"), values);
  const save = element("button", {type: "button"}, "Download CSV");
  const choices = spec.choices(board.report).filter(({options}) => options.length);
  for (const {name, options} of choices) choice[name] = options[0][0];
  const controls = choices.filter(({options}) => options.length > 1).map(given =>
    makeChoice(`${spec.name}-${given.name}`, given, value => {
      choice[given.name] = value;
      draw();
    }));
  const panel = element("figure", {class: "panel", "data-plot": spec.name},
    element("div", {class: "head"}, element("h3", {}, spec.title), ...controls),
    drawing, caption, element("div", {class: "foot"}, details, save));
  drawing.setAttribute("aria-labelledby", caption.id);
  let figure = {head: [], rows: []};
  let near = false;
  let printing = false;
  let stale = true;

  function showValues() {
    if (details.open) values.replaceChildren(...valueTable(figure.head, figure.rows));
  }

  function draw() {
    stale = !near && !printing;
    if (stale) return;
    const width = printing ? Math.min(PAPER, drawing.clientWidth) : drawing.clientWidth;
    figure = spec.figure(board.arms(), board, choice, width);
    caption.textContent = figure.caption;
    loadPlotly().react(drawing, figure.traces, printing ? {...figure.layout, width} : figure.layout, {
      responsive: true,
      displaylogo: false,
      modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
      toImageButtonOptions: {format: "svg", filename: spec.name},
    });
    showValues();
  }

  details.addEventListener("toggle", showValues);
  save.addEventListener("click", () => download(`${spec.name}.csv`, csvText(figure.head, figure.rows)));
  const nearness = new IntersectionObserver(entries => {
    near = entries.at(-1).isIntersecting;
    if (near && stale) draw();
  }, {rootMargin: NEAR});
  return {
    panel, draw,
    watch: () => nearness.observe(panel),
    print(on) {
      printing = on;
      if (!on) window.Plotly?.purge(drawing); // it would keep the paper's width
      draw();
    },
  };
}

function makePanels(host, legend, report, isDark) {
  const inTable = new Set(report.rows.map(row => row.id));
  const muted = new Set();
  let kept = inTable;
  const resolved = (selector, property) => getComputedStyle(document.querySelector(selector))[property];
  const board = {
    report,
    arms: () => report.arms.filter(arm => (kept.has(arm.id) || !inTable.has(arm.id)) && !muted.has(arm.series)),
    look: series => {
      const style = styleOf(report.styles, series);
      return {color: isDark() ? style.dark : style.light, symbol: style.symbol};
    },
    ink: () => ({
      text: resolved("body", "color"),
      muted: resolved("#plots .panel figcaption", "color"),
      grid: resolved("#plots .panel", "borderTopColor"),
      paper: resolved("#plots .panel", "backgroundColor"),
      warn: resolved("#plots .panel .foot", "outlineColor"),
    }),
  };
  const panels = FIGURES.filter(spec => spec.drawable(report)).map(spec => makePanel(spec, board));
  host.append(...panels.map(({panel}) => panel));
  // This script runs while the rest of the page, the bundle, is still being read.
  document.addEventListener("DOMContentLoaded", () => {
    panels.forEach(({watch}) => watch());
    if (panels.length) setTimeout(loadPlotly, WARM_UP);
  });
  const redraw = () => panels.forEach(({draw}) => draw());

  const series = [...new Set(report.arms.map(arm => arm.series))];
  const state = element("span", {class: "count", role: "status"});
  legend.append(...series.map(name => {
    const button = element("button", {type: "button", class: "chip", "aria-pressed": "true"},
      swatch(report.styles, name), " ", element("bdi", name.length > 24 ? {title: name} : {}, shortened(name, 24)));
    button.addEventListener("click", () => {
      if (!muted.delete(name)) muted.add(name);
      button.setAttribute("aria-pressed", String(!muted.has(name)));
      redraw();
    });
    return button;
  }), state);

  return {
    redraw,
    print: on => panels.forEach(panel => panel.print(on)),
    keep(ids) {
      kept = ids;
      state.textContent = ids.size === inTable.size ? "" : `the ${ids.size} of ${inTable.size} rows that pass the filter above`;
      redraw();
    },
  };
}
