// Start: the report's data joined to the HTML that Python wrote.

const report = JSON.parse(document.getElementById("report").textContent);
report.styles = completeStyles(report.styles, report.arms.map(arm => arm.series));

function makeTheme(button, changed) {
  const system = matchMedia("(prefers-color-scheme: dark)");
  let dark = system.matches;
  let printing = false;
  const show = () => {
    button.textContent = dark ? "Light" : "Dark";
    button.setAttribute("aria-label", `Switch to the ${dark ? "light" : "dark"} theme`);
  };
  const set = value => {
    dark = value;
    document.documentElement.style.colorScheme = dark ? "dark" : "light";
    show();
    changed();
  };
  button.addEventListener("click", () => set(!dark));
  system.addEventListener("change", event => set(event.matches));
  button.hidden = false;
  show();
  return {
    isDark: () => dark && !printing,
    // Paper is white, whatever the screen is.
    print(on) {
      printing = on;
      document.documentElement.style.colorScheme = dark && !on ? "dark" : "light";
    },
  };
}

function nameRows(table) {
  const seriesOf = new Map(report.arms.map(arm => [arm.id, arm.series]));
  [...table.tBodies[0].rows].forEach((line, index) => {
    const series = seriesOf.get(report.rows[index].id);
    if (series !== undefined) line.cells[0].prepend(swatch(report.styles, series), " ");
  });
}

function start() {
  const main = document.querySelector("table[data-table=main]");
  const theme = makeTheme(document.getElementById("theme"), () => plots.redraw());
  const plots = makePanels(document.getElementById("panels"), document.getElementById("legend"), report, () => theme.isDark());
  for (const [event, on] of [["beforeprint", true], ["afterprint", false]]) {
    addEventListener(event, () => {
      theme.print(on);
      plots.print(on);
    });
  }
  document.getElementById("plots").hidden = !report.arms.length;
  if (main) {
    nameRows(main);
    makeSortable(main, report.columns, report.rows);
    makeFilters(document.getElementById("filters"), main, report, kept => plots.keep(kept));
  }
  report.views.forEach((view, index) => {
    const table = document.querySelector(`table[data-table="${index}"]`);
    if (table) makeSortable(table, view.columns, view.rows);
  });
  makeTabs(document.getElementById("views"));
  makeEdges();
}

start();
