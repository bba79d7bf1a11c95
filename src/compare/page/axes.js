// What the plots share: numbers and names as text, ranges that a far point does not stretch, ticks, a layout.

const FENCE = 3; // interquartile ranges beyond the quartiles: what lies farther out is named, not drawn (Tukey's outer fence)
const MIN_PAD = 0.13; // in powers of ten at each end of a log axis: more than the dodge of its lines
const NARROW = 420; // pixels: below it names need a wider margin
const FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif';

const known = values => values.filter(value => typeof value === "number");
const byNumber = (a, b) => a - b;
const four = value => (typeof value === "number" ? String(Number(value.toPrecision(4))) : "–");
const tail = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;

// Text for Plotly, whose labels are a small HTML of their own.
function literal(text, limit = 48) {
  return shortened(text, limit).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
}

function hover(title, lines) {
  return [`<b>${literal(title, 64)}</b>`, ...lines.filter(Boolean).map(line => literal(line, 80))].join("<br>");
}

function interval(arm) {
  return arm.low === null ? "" : `95 % interval ${four(arm.low)} to ${four(arm.high)}`;
}

function seedCount(arms) {
  const counts = known(arms.map(arm => arm.n)).sort(byNumber);
  if (!counts.length) return "no finished seed";
  const [least, most] = [counts[0], counts.at(-1)];
  return least === most ? `n = ${tail(least, "seed")}` : `n = ${least} to ${most} seeds`;
}

function bySeries(arms) {
  const groups = new Map();
  for (const arm of arms) groups.set(arm.series, [...(groups.get(arm.series) ?? []), arm]);
  return [...groups];
}

// The range that shows the bulk of the values: [low, high], padded; null without values.
function fenced(values) {
  const sorted = known(values).sort(byNumber);
  if (!sorted.length) return null;
  const quantile = share => sorted[Math.round(share * (sorted.length - 1))];
  const reach = Math.max(FENCE * (quantile(0.75) - quantile(0.25)), 0.1 * Math.abs(quantile(0.5)));
  const inside = sorted.filter(value => value >= quantile(0.25) - reach && value <= quantile(0.75) + reach);
  const pad = 0.06 * (inside.at(-1) - inside[0]) || 0.02 * Math.abs(inside[0]) || 1;
  return [inside[0] - pad, inside.at(-1) + pad];
}

// The best arm is never cut off. Arms whose mean lies far outside are named above the plot instead; one that is nearly inside
// widens the range.
function rangeOf(ranked, controls, lowerIsBetter) {
  const bulk = fenced(ranked.flatMap(arm => [arm.mean, arm.low, arm.high, ...arm.seeds.map(seed => seed.value)]))
    ?? fenced(controls.map(arm => arm.mean)) ?? [0, 1];
  const means = known(ranked.map(arm => arm.mean));
  const low = lowerIsBetter ? Math.min(bulk[0], ...means) : bulk[0];
  const high = lowerIsBetter ? bulk[1] : Math.max(bulk[1], ...means);
  const reach = (high - low) / 2;
  const near = [...means, ...known(controls.map(arm => arm.mean))].filter(mean => mean > low - reach && mean < high + reach);
  return [Math.min(bulk[0], ...near.map(mean => mean - reach / 6)), Math.max(bulk[1], ...near.map(mean => mean + reach / 6))];
}

const summary = arm => `${shortened(arm.label, 32)}: ${four(arm.mean)}`;

function outside(arms, range) {
  const far = arms.filter(arm => arm.mean !== null && (arm.mean < range[0] || arm.mean > range[1]));
  return far.map(arm =>
    `${arm.mean > range[1] ? "↑" : "↓"} ${summary(arm)}, ${arm.mean > range[1] ? "above" : "below"} the plot`);
}

// Learning rates as the field writes them: 3e-4.
const rateText = value => (value < 0.1 ? String(Number(value.toPrecision(3)).toExponential()) : four(value));

// Every value its tick, or as many of them, evenly, as there is room for.
function ticks(values, text, width) {
  const stride = Math.ceil(values.length / Math.max(3, Math.floor(width / 48)));
  const shown = values.filter((_, index) => index % stride === 0);
  return {tickmode: "array", tickvals: shown, ticktext: shown.map(text), tickangle: 0};
}

// 1, 2 and 5 in each power of ten; only the powers where there is no room for so many.
function logTicks([low, high], width) {
  const first = Math.floor(low);
  const powers = Array.from({length: Math.ceil(high) - first + 1}, (_, index) => 10 ** (first + index));
  const inside = values => values.filter(value => Math.log10(value) >= low && Math.log10(value) <= high);
  const fine = inside(powers.flatMap(power => [power, 2 * power, 5 * power]));
  return fine.length > width / 64 ? inside(powers) : fine;
}

function logRange(values, share = 0.06) {
  const logs = values.map(Math.log10);
  const [low, high] = [Math.min(...logs), Math.max(...logs)];
  const pad = Math.max((high - low) * share, MIN_PAD);
  return [low - pad, high + pad];
}

// Enough for about five ticks to differ.
const decimals = ([low, high]) => Math.min(6, Math.max(0, Math.ceil(-Math.log10((high - low) / 4))));

function layoutOf(ink, {x, y, yTitle, notes = [], shapes = []}) {
  const named = notes.length > 4 ? [...notes.slice(0, 3), `and ${notes.length - 3} more outside the plot`] : notes;
  const axis = {gridcolor: ink.grid, linecolor: ink.grid, zeroline: false, ticks: "outside", tickcolor: ink.grid, ticklen: 4};
  const line = (text, index) => ({
    text: literal(text, 64), xref: "paper", yref: "paper", x: 0, y: 1, xanchor: "left", yanchor: "bottom", align: "left",
    xshift: -44, yshift: 4 + 17 * (named.length - index), showarrow: false, font: {size: 12, color: ink.muted},
  });
  return {
    margin: {l: 50, r: 12, t: 26 + 17 * named.length, b: 44},
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: {family: FONT, size: 12, color: ink.text},
    hovermode: "closest",
    hoverlabel: {align: "left", bgcolor: ink.paper, bordercolor: ink.muted, font: {family: FONT, size: 12, color: ink.text}},
    showlegend: false,
    dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",
    xaxis: {...axis, ...x, title: {text: literal(x.title), standoff: 8, font: {size: 12, color: ink.muted}}},
    yaxis: {...axis, ...y, tickformat: `.${decimals(y.range)}f`, automargin: true},
    annotations: [line(yTitle, 0), ...named.map((text, index) => line(text, index + 1))],
    shapes,
  };
}

function points(x, y, texts, rest) {
  return {type: "scatter", x, y, hoverinfo: "text", hovertext: texts, ...rest};
}
