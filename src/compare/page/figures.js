// The four plots: arms in; traces, layout, a caption and the drawn values out. Nothing here touches the document.

const FIRST_STEPS = 0.08; // of a training: they may run out of the plot
const DODGE = 0.12; // in powers of two between lines at one rank or rate, so that intervals do not hide each other
const EDGE_ROOM = 0.09; // of the plot's height: what the word "edge" takes below its ring
const BESIDE = 2 ** 0.05; // seeds stand so far from the interval of their mean
const COMPACT = new Intl.NumberFormat("en", {notation: "compact", maximumSignificantDigits: 3});

const shift = (index, count) => 2 ** ((index - (count - 1) / 2) * Math.min(DODGE, 0.6 / count));
const better = report => (report.metric.lower_is_better ? "Lower is better." : "Higher is better.");

function rankFigure(arms, board, choice, width) {
  const {report} = board;
  const ink = board.ink();
  const ranked = arms.filter(arm => arm.r !== null && arm.mean !== null);
  const controls = arms.filter(arm => arm.r === null && arm.mean !== null);
  const range = rangeOf(ranked, controls, report.metric.lower_is_better);
  const ranks = [...new Set(ranked.map(arm => arm.r))].sort(byNumber);
  const xRange = logRange(ranks.length ? ranks : [1, 64]);
  const groups = bySeries(ranked);
  const traces = groups.flatMap(([name, members], index) => {
    const {color, symbol} = board.look(name);
    const line = members.sort((a, b) => a.r - b.r);
    const place = arm => arm.r * shift(index, groups.length);
    const seeds = line.flatMap(arm => arm.seeds.filter(seed => seed.value !== null).map(seed => ({arm, seed})));
    return [
      points(seeds.map(({arm}) => place(arm) * BESIDE), seeds.map(({seed}) => seed.value),
        seeds.map(({arm, seed}) => hover(arm.label, [`seed ${seed.seed}: ${four(seed.value)}`, `run ${seed.run_id}`])),
        {mode: "markers", marker: {color, symbol: "circle", size: 4.5, opacity: 0.4}}),
      points(line.map(place), line.map(arm => arm.mean),
        line.map(arm => hover(arm.label, [`mean ${four(arm.mean)}, n = ${arm.n}`, interval(arm)])), {
          mode: "lines+markers",
          line: {color, width: 1.6},
          marker: {color, symbol, size: 8, line: {color: ink.paper, width: 1}},
          error_y: {
            type: "data", symmetric: false, thickness: 1.5, width: 3, color,
            array: line.map(arm => (arm.high === null ? 0 : arm.high - arm.mean)),
            arrayminus: line.map(arm => (arm.low === null ? 0 : arm.mean - arm.low)),
          },
        }),
    ];
  });
  const inside = controls.filter(arm => arm.mean >= range[0] && arm.mean <= range[1]);
  const spots = Array.from({length: 25}, (_, index) => 10 ** (xRange[0] + (index / 24) * (xRange[1] - xRange[0])));
  for (const arm of inside) {
    const {color} = board.look(arm.series);
    traces.push(points(spots, spots.map(() => arm.mean),
      spots.map(() => hover(arm.label, [`mean ${four(arm.mean)}, n = ${arm.n}`, interval(arm)])),
      {mode: "lines", line: {color, width: 1.4, dash: "dash"}}));
  }
  const layout = layoutOf(ink, {
    x: {type: "log", title: "rank r (log scale)", range: xRange, ...ticks(ranks, String, width)},
    y: {range}, yTitle: report.metric.label, notes: outside([...controls, ...ranked], range),
    shapes: inside.filter(arm => arm.low !== null).map(arm => ({
      type: "rect", xref: "paper", x0: 0, x1: 1, y0: arm.low, y1: arm.high, opacity: 0.1, line: {width: 0},
      fillcolor: board.look(arm.series).color, layer: "below",
    })),
  });
  for (const arm of inside) {
    layout.annotations.push({
      text: literal(arm.label, 24), xref: "paper", x: 1, y: arm.mean, xanchor: "right", yanchor: "bottom", showarrow: false,
      font: {size: 11, color: board.look(arm.series).color},
    });
  }
  return {
    traces, layout,
    caption: "Means over the report seeds with 95 % t intervals, small points are single seeds, "
      + `${seedCount(ranked)} each; a dashed line is a control without a rank. ${better(report)}`,
    head: ["arm", "rank", "mean", "low", "high", "n"],
    rows: [...ranked, ...controls].map(arm => [arm.label, arm.r, arm.mean, arm.low, arm.high, arm.n]),
  };
}

// Whether the rate was chosen and ends the grid of its arm.
function atEdge(rate, rates) {
  const tried = rates.map(({lr}) => lr);
  return rate.chosen && tried.length > 1 && (rate.lr === Math.min(...tried) || rate.lr === Math.max(...tried));
}

// Of the choices on the edge those that get the word, from the lowest up: none that would lie on another's.
function namedEdges(drawn, field, room) {
  const edges = drawn.flatMap(arm => arm.rates.filter(rate => rate[field] !== null && atEdge(rate, arm.rates)));
  const named = [];
  for (const rate of edges.sort((a, b) => a[field] - b[field])) {
    if (!named.some(other => other.lr === rate.lr && rate[field] - other[field] < room)) named.push(rate);
  }
  return new Set(named);
}

const isFailed = seed => seed.status !== "ok";
const finished = rate => rate.seeds.filter(seed => !isFailed(seed)).length;

function rateFigure(arms, board, choice, width) {
  const {report} = board;
  const ink = board.ink();
  const [field, label] = choice.quantity === "metric" ? ["metric", report.metric.label] : ["validation", report.validation.label];
  const drawn = arms.filter(arm => arm.rates.length && (choice.rank === "all" || String(arm.r) === choice.rank));
  const rates = [...new Set(drawn.flatMap(arm => arm.rates.map(rate => rate.lr)))].sort(byNumber);
  const range = fenced(drawn.flatMap(arm => arm.rates.map(rate => rate[field]))) ?? [0, 1];
  range[0] -= 0.08 * (range[1] - range[0]); // room for a word under the lowest point
  const named = namedEdges(drawn, field, EDGE_ROOM * (range[1] - range[0]));
  const traces = [];
  let edges = 0;
  drawn.forEach((arm, index) => {
    const {color, symbol} = board.look(arm.series);
    const place = rate => rate.lr * shift(index, drawn.length);
    const line = [...arm.rates].sort((a, b) => a.lr - b.lr);
    const seeds = line.flatMap(rate => rate.seeds.map(seed => ({rate, seed})));
    const fine = seeds.filter(({seed}) => !isFailed(seed) && seed[field] !== null);
    const failed = seeds.filter(({seed}) => isFailed(seed));
    const onEdge = rate => atEdge(rate, line);
    const rateHover = rate => hover(arm.label, [
      `learning rate ${four(rate.lr)}${rate.chosen ? ", chosen" : ""}`,
      onEdge(rate) ? "at the edge of the grid: a better one may lie beyond" : "",
      `validation ${four(rate.validation)}`,
      `${report.metric.name} ${four(rate.metric)}`,
      `${finished(rate)} of ${tail(rate.seeds.length, "seed")} finished`,
    ]);
    const chosen = line.filter(rate => rate.chosen && rate[field] !== null);
    edges += chosen.filter(onEdge).length;
    traces.push(
      points(fine.map(({rate}) => place(rate)), fine.map(({seed}) => seed[field]),
        fine.map(({rate, seed}) => hover(arm.label, [`${seed.role} seed ${seed.seed} at ${four(rate.lr)}: ${four(seed[field])}`])),
        {mode: "markers", marker: {color, size: 4, opacity: 0.35}}),
      points(failed.map(({rate}) => place(rate)), failed.map(() => range[1] - 0.02 * (range[1] - range[0])),
        failed.map(({rate, seed}) => hover(arm.label, [`${seed.role} seed ${seed.seed} at ${four(rate.lr)}: ${seed.status}`])),
        {mode: "markers", marker: {color, symbol: "x-thin-open", size: 8, line: {width: 1.6}}}),
      points(line.map(place), line.map(rate => rate[field]), line.map(rateHover),
        {mode: "lines+markers", line: {color, width: 1.6}, marker: {color, symbol, size: 9, line: {color: ink.paper, width: 1}}}),
      points(chosen.map(place), chosen.map(rate => rate[field]), chosen.map(rateHover), {
        mode: "markers+text",
        text: chosen.map(rate => (named.has(rate) ? "edge" : "")),
        textposition: "bottom center",
        textfont: {size: 11, color: ink.warn},
        marker: {
          symbol: "circle-open", size: 17, line: {width: 1.6}, color: chosen.map(rate => (onEdge(rate) ? ink.warn : ink.text)),
        },
      }),
    );
  });
  const means = known(drawn.flatMap(arm => arm.rates.map(rate => rate[field])));
  const [above, below] = [means.filter(mean => mean > range[1]).length, means.filter(mean => mean < range[0]).length];
  const notes = [above && `↑ ${tail(above, "mean")} above the plot`, below && `↓ ${tail(below, "mean")} below the plot`].filter(Boolean);
  return {
    traces,
    layout: layoutOf(ink, {
      x: {
        type: "log", title: "learning rate (log scale)", range: logRange(rates.length ? rates : [1e-4, 1e-2], 0.1),
        ...ticks(rates, rateText, width),
      },
      y: {range}, yTitle: label, notes,
    }),
    caption: `Means at each learning rate (validation: of the tuning seeds, test: of the report seeds), ${tail(drawn.length, "arm")}; small points are single seeds, a cross at `
      + "the top is a run that did not finish, the ring marks the rate chosen on validation"
      + (edges ? `, and ${tail(edges, "choice")} on the edge of the grid.` : "."),
    head: ["arm", "rank", "learning_rate", "chosen", "validation", "metric", "seeds", "finished"],
    rows: drawn.flatMap(arm => arm.rates.map(rate => [
      arm.label, arm.r, rate.lr, rate.chosen ? "yes" : "no", rate.validation, rate.metric, rate.seeds.length, finished(rate),
    ])),
  };
}

function curveFigure(arms, board, choice) {
  const ink = board.ink();
  const drawn = arms.filter(arm => arm.curve && (choice.rank === "all" || String(arm.r) === choice.rank));
  const last = Math.max(1, ...drawn.map(({curve}) => curve.steps.at(-1) ?? 1));
  const late = drawn.flatMap(({curve}) =>
    curve.steps.flatMap((step, index) => (step < FIRST_STEPS * last ? [] : [curve.low[index], curve.high[index]])));
  const range = fenced([...late, ...drawn.flatMap(({curve}) => curve.validation)]) ?? [0, 1];
  const traces = drawn.flatMap(arm => {
    const {curve} = arm;
    const {color, symbol} = board.look(arm.series);
    const bound = (y, rest) => ({type: "scatter", x: curve.steps, y, mode: "lines", hoverinfo: "skip", line: {width: 0}, ...rest});
    return [
      bound(curve.low, {}),
      bound(curve.high, {fill: "tonexty", fillcolor: `${color}26`}),
      points(curve.steps, curve.mean, curve.steps.map((step, index) => hover(arm.label, [
        `step ${step}: ${four(curve.mean[index])}`, `seeds from ${four(curve.low[index])} to ${four(curve.high[index])}`,
      ])), {mode: "lines", line: {color, width: 1.6}}),
      points(curve.validation_steps, curve.validation,
        curve.validation_steps.map((step, index) => hover(arm.label, [`validation at step ${step}: ${four(curve.validation[index])}`])),
        {mode: "markers", marker: {color, symbol: `${symbol}-open`, size: 8, line: {width: 1.6}}}),
    ];
  });
  return {
    traces,
    layout: layoutOf(ink, {
      x: {title: "step", range: [0, last * 1.02]}, y: {range}, yTitle: "training loss (nats per target token)",
    }),
    caption: "Training loss at the chosen rate: the line is the mean, the band goes from the least to the greatest of the "
      + `report seeds (${seedCount(drawn)}), open marks are the validation loss. The first steps run out at the top.`,
    head: ["arm", "step", "mean", "low", "high"],
    rows: drawn.flatMap(({label, curve}) =>
      curve.steps.map((step, index) => [label, step, curve.mean[index], curve.low[index], curve.high[index]])),
  };
}

const counted = value => Math.round(value).toLocaleString("en");
const compact = value => COMPACT.format(value);

// show: a tick; whole: the number in full, in bytes where memory is meant.
const COSTS = {
  parameters: {text: "trainable parameters", field: "trainable_parameters", unit: 1, show: compact, whole: counted},
  memory: {text: "peak memory (GiB)", field: "memory_bytes", unit: 2 ** 30, show: four, whole: bytes => four(bytes / 2 ** 30)},
  time: {text: "train seconds", field: "seconds", unit: 1, show: compact, whole: counted},
};

function paretoFigure(arms, board, choice, width) {
  const {report} = board;
  const ink = board.ink();
  const cost = COSTS[choice.cost];
  const measured = arms.filter(arm => arm.mean !== null && arm[cost.field] !== null);
  const placed = measured.filter(arm => arm[cost.field] > 0);
  const range = rangeOf(placed.filter(arm => arm.r !== null), placed.filter(arm => arm.r === null), report.metric.lower_is_better);
  const costOf = arm => arm[cost.field] / cost.unit;
  const costs = placed.map(costOf);
  const wide = costs.length > 0 && Math.max(...costs) > 8 * Math.min(...costs);
  const front = placed.filter(arm => arm.pareto.includes(choice.cost)).sort((a, b) => costOf(a) - costOf(b));
  // Beyond the front there is nothing, hence room for names.
  const named = new Set(front.length <= 6 ? front : []);
  const armHover = arm => hover(arm.label, [
    `mean ${four(arm.mean)}, n = ${arm.n}`, interval(arm),
    ...Object.values(COSTS).map(({text, field, whole}) => (arm[field] === null ? "" : `${text} ${whole(arm[field])}`)),
    arm.pareto.includes(choice.cost) ? "on the front" : "",
  ]);
  const traces = [
    points(front.map(costOf), front.map(arm => arm.mean), [],
      {mode: "lines", hoverinfo: "skip", line: {color: ink.muted, width: 1.3, dash: "dot", shape: "hv"}}),
    ...bySeries(placed).map(([name, members]) => {
      const {color, symbol} = board.look(name);
      return points(members.map(costOf), members.map(arm => arm.mean), members.map(armHover), {
        mode: "markers+text",
        text: members.map(arm => (named.has(arm) ? literal(arm.label, 16) : "")),
        textposition: report.metric.lower_is_better ? "bottom center" : "top center",
        textfont: {size: 11, color: ink.muted},
        marker: {color, symbol, size: 10, line: {color: ink.paper, width: 1}},
        error_y: {
          type: "data", symmetric: false, thickness: 1, width: 0, color,
          array: members.map(arm => (arm.high === null ? 0 : arm.high - arm.mean)),
          arrayminus: members.map(arm => (arm.low === null ? 0 : arm.mean - arm.low)),
        },
      });
    }),
  ];
  const axis = wide ? {type: "log", range: logRange(costs, width < NARROW ? 0.22 : 0.1)} : {nticks: 6};
  if (!wide && new Set(costs).size === 1) axis.range = [0.5 * costs[0], 1.5 * costs[0]];
  if (wide) axis.tickvals = logTicks(axis.range, width);
  if (wide) axis.ticktext = axis.tickvals.map(cost.show);
  const free = measured.filter(arm => arm[cost.field] === 0).map(arm => `${summary(arm)}, at no cost`);
  return {
    traces,
    layout: layoutOf(ink, {
      x: {title: cost.text + (wide ? " (log scale)" : ""), ...axis}, y: {range}, yTitle: report.metric.label,
      notes: [...free, ...outside(placed, range)],
    }),
    caption: `Means with 95 % intervals over the report seeds (${seedCount(placed)}). Dotted: the front of all rows, `
      + `where no other is both cheaper and better. ${better(report)}`,
    head: ["arm", "rank", "trainable_parameters", "memory_bytes", "seconds", "mean", "low", "high", "n", "on_front"],
    rows: measured.map(arm => [
      arm.label, arm.r, arm.trainable_parameters, arm.memory_bytes, arm.seconds, arm.mean, arm.low, arm.high, arm.n,
      arm.pareto.includes(choice.cost) ? "yes" : "no",
    ]),
  };
}

function rankChoice(report, drawn) {
  const ranks = [...new Set(report.arms.filter(drawn).map(arm => arm.r))].sort((a, b) => (a === null) - (b === null) || a - b);
  const options = ranks.map(rank => [String(rank), rank === null ? "none" : String(rank)]);
  return {name: "rank", label: "Rank", options: options.length > 1 ? [...options, ["all", "all"]] : options};
}

const FIGURES = [
  {
    name: "quality_by_rank", title: "Quality by rank", figure: rankFigure,
    choices: () => [],
    drawable: report => report.arms.length > 0,
  },
  {
    name: "learning_rates", title: "Learning rates", figure: rateFigure,
    choices: report => [
      {name: "quantity", label: "Loss", options: [["validation", "validation"], ["metric", "test"]]},
      rankChoice(report, arm => arm.rates.length > 0),
    ],
    drawable: report => report.arms.some(arm => arm.rates.length > 0),
  },
  {
    name: "training_loss", title: "Training loss", figure: curveFigure,
    choices: report => [rankChoice(report, arm => arm.curve !== null)],
    drawable: report => report.arms.some(arm => arm.curve !== null),
  },
  {
    name: "quality_by_cost", title: "Quality by cost", figure: paretoFigure,
    choices: report => [{
      name: "cost", label: "Cost",
      options: [["parameters", "parameters"], ["memory", "memory"], ["time", "time"]]
        .filter(([name]) => report.arms.some(arm => arm[COSTS[name].field] !== null)),
    }],
    drawable: report => report.arms.some(arm => Object.values(COSTS).some(({field}) => arm[field] !== null)),
  },
];
