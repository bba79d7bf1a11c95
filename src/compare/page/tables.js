// Tables come from Python as HTML. Here they become sortable: rows move, nothing is written again.

const collator = new Intl.Collator("en", {numeric: true});
const NEXT_ORDER = {none: "ascending", ascending: "descending", descending: "none"};

function element(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

function shortened(text, limit = 40) {
  const signs = [...text];
  return signs.length > limit ? signs.slice(0, limit - 1).join("") + "…" : text;
}

// Numbers before words; what is absent comes last in both directions.
function comparator(direction) {
  const sign = direction === "descending" ? -1 : 1;
  return (a, b) => {
    if (a === null || b === null) return (a === null) - (b === null);
    if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
    return sign * (typeof a === "number" ? a - b : collator.compare(a, b));
  };
}

// The value that a column sorts by; the column after the last holds the flags.
function sortValue(row, column) {
  if (!column) return row.flags.length ? row.flags.join(", ") : null;
  return row.cells[column.key].value;
}

function makeSortable(table, columns, rows) {
  const body = table.tBodies[0];
  const original = [...body.rows].map((line, index) => ({line, row: rows[index]}));
  const heads = [...table.tHead.querySelectorAll(".heads th")];
  heads.forEach((head, index) => {
    const button = element("button", {type: "button"}, ...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const direction = NEXT_ORDER[head.getAttribute("aria-sort")];
      for (const other of heads) other.setAttribute("aria-sort", other === head ? direction : "none");
      const compare = comparator(direction);
      const sorted = direction === "none"
        ? original
        : original.map(entry => ({...entry, value: sortValue(entry.row, columns[index])})).sort((a, b) => compare(a.value, b.value));
      body.append(...sorted.map(entry => entry.line));
    });
  });
}

// A shade at the right edge while columns are hidden behind it.
function makeEdges() {
  for (const frame of document.querySelectorAll(".frame")) {
    const scroll = frame.firstElementChild;
    const show = () => frame.classList.toggle("more", scroll.scrollLeft + scroll.clientWidth < scroll.scrollWidth - 2);
    scroll.addEventListener("scroll", show, {passive: true});
    new ResizeObserver(show).observe(scroll);
  }
}

// Further tables one at a time, behind tabs (WAI-ARIA tabs pattern: arrow keys move, one tab stop).
function makeTabs(host) {
  const panels = [...host.querySelectorAll(".view")];
  if (panels.length < 2) return;
  const list = element("div", {role: "tablist", "aria-label": "Contrasts"});
  const tabs = panels.map((panel, index) => {
    const title = panel.querySelector("h3");
    const roles = {type: "button", role: "tab", id: `tab-${index}`, "aria-controls": `view-${index}`};
    const tab = element("button", roles, ...title.childNodes);
    title.remove();
    panel.id = `view-${index}`;
    panel.style.marginTop = "0";
    panel.setAttribute("role", "tabpanel");
    panel.removeAttribute("aria-label");
    panel.setAttribute("aria-labelledby", tab.id);
    tab.addEventListener("click", () => select(index));
    return tab;
  });
  function select(chosen) {
    tabs.forEach((tab, index) => {
      tab.setAttribute("aria-selected", String(index === chosen));
      tab.tabIndex = index === chosen ? 0 : -1;
      panels[index].hidden = index !== chosen;
    });
  }
  list.addEventListener("keydown", event => {
    const step = {ArrowRight: 1, ArrowLeft: -1}[event.key];
    if (!step) return;
    event.preventDefault();
    const next = (tabs.indexOf(document.activeElement) + step + tabs.length) % tabs.length;
    select(next);
    tabs[next].focus();
  });
  list.append(...tabs);
  host.prepend(list);
  select(0);
}
