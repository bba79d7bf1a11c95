// The filter above the main table: words and chips. What it leaves is also what the plots draw.

const FACETS = [
  ["variant", "Variant", value => String(value)],
  ["precision", "Precision", value => String(value)],
  ["r", "Rank", value => (value === null ? "no rank" : String(value))],
];

function makeFilters(host, table, report, changed) {
  const {rows} = report;
  const lines = [...table.tBodies[0].rows];
  const haystacks = rows.map(row =>
    [row.label, ...Object.values(row.cells).map(cell => cell.text), ...row.flags].join("\n").toLowerCase());
  const chosen = new Map(FACETS.map(([key]) => [key, new Set()]));
  let words = [];
  let unflagged = false;

  const search = element("input", {
    type: "search", id: "search", placeholder: "words in any column", autocomplete: "off", spellcheck: "false",
  });
  const count = element("p", {class: "count", role: "status"});
  const reset = element("button", {type: "button", class: "reset"}, "Show all");
  const chips = [];

  function chip(text, pressed, toggle, series) {
    const button = element("button", {type: "button", class: "chip", "aria-pressed": "false"});
    if (series) button.append(swatch(report.styles, series), " ");
    button.append(element("bdi", text.length > 24 ? {title: text} : {}, shortened(text, 24)));
    button.addEventListener("click", () => {
      toggle();
      apply();
    });
    chips.push([button, pressed]);
    return button;
  }

  function group(title, buttons) {
    return element("div", {class: "facet", role: "group", "aria-label": title}, element("span", {}, title), ...buttons);
  }

  function keeps(row, index) {
    if (unflagged && row.flags.length) return false;
    for (const [key, values] of chosen) if (values.size && !values.has(row[key])) return false;
    return words.every(word => haystacks[index].includes(word));
  }

  function apply() {
    const kept = new Set();
    rows.forEach((row, index) => {
      const keep = keeps(row, index);
      lines[index].hidden = !keep;
      if (keep) kept.add(row.id);
    });
    for (const [button, pressed] of chips) button.setAttribute("aria-pressed", String(pressed()));
    count.textContent = kept.size === rows.length ? `all ${rows.length} rows` : `${kept.size} of ${rows.length} rows`;
    reset.hidden = kept.size === rows.length;
    changed(kept);
  }

  const groups = FACETS.map(([key, title, text]) => {
    const values = [...new Set(rows.map(row => row[key]))];
    if (key === "r") values.sort((a, b) => (a === null) - (b === null) || a - b);
    if (values.length < 2) return null;
    const set = chosen.get(key);
    return group(title, values.map(value => chip(
      text(value),
      () => set.has(value),
      () => set.delete(value) || set.add(value),
      key === "variant" && report.styles.has(value) ? value : null,
    )));
  });
  if (rows.some(row => row.flags.length) && rows.some(row => !row.flags.length)) {
    groups.push(group("Flags", [chip("without flags", () => unflagged, () => (unflagged = !unflagged))]));
  }
  search.addEventListener("input", () => {
    words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    apply();
  });
  reset.addEventListener("click", () => {
    search.value = "";
    words = [];
    unflagged = false;
    for (const set of chosen.values()) set.clear();
    apply();
    search.focus();
  });
  const label = element("label", {for: "search"}, "Filter");
  host.append(
    element("div", {class: "search"}, label, search, count, reset),
    element("div", {class: "facets"}, ...groups.filter(Boolean)),
  );
  host.hidden = false;
  apply();
}
