// The stored study of the neural game: a run is saved that ends within a margin of the best utility and has not fallen
// by more than the margin from its peak.
"use strict";

{
  // A run that diverged has no end, and no comparison with it holds.
  const saved = ([end, peak], margin, best) => end !== null && end >= best - margin && peak - end <= margin;

  explorer("neural", ({ root, form, data }) => {
    const { best, looks, rows } = data;
    const chart = explorer.chart(root.querySelector("[data-chart=counts]"));
    const cells = [...root.querySelectorAll("tr[data-row]")];
    const names = cells.map((row) => row.querySelector("th").textContent.trim());
    const most = Number(form.elements.margin.max);
    const seeds = Math.max(...rows.map((row) => row.runs.length));
    const count = (row, margin) => row.runs.filter((run) => saved(run, margin, best)).length;
    const places = Array.from({ length: 101 }, (_, i) => (i * most) / 100);
    const curves = rows.map((row) => places.map((margin) => count(row, margin)));
    const strips = cells.map((row, i) => fill(row.querySelector(".strip"), rows[i]));

    // The ends of an arm's runs side by side, from 0 to the best utility.
    function fill(svg, row) {
      const look = looks[row.arm];
      return row.runs.map(([end], i) => {
        const x = 5 + (150 * (end ?? 0)) / best;
        const y = 4 + (12 * i) / row.runs.length;
        const mark = chart.make("path", { style: chart.ink(look), d: look.marker, transform: `translate(${x.toFixed(1)} ${y.toFixed(1)}) scale(2.4)` });
        svg.append(mark);
        return mark;
      });
    }

    const draw = ({ margin }) => {
      root.querySelector(".rule").textContent =
        `Saved: ends at ${+(best - margin).toFixed(2)} or higher, and no more than ${margin} below its peak.`;
      chart.axes({ x: [0, most], y: [0, 1.05 * seeds], xlabel: "margin", ylabel: "saved runs" });
      chart.behind(chart.make("path", { class: "mark", d: `M${chart.x(margin)} ${chart.top}V${chart.bottom}` }));
      rows.forEach((row, i) => {
        const own = count(row, margin);
        const look = looks[row.arm];
        const first = rows.findIndex((other) => other.arm === row.arm) === i;
        const d = chart.path(places.length, (at) => [places[at], curves[i][at]]);
        const style = chart.ink(look);
        chart.mark(chart.make("path", { class: first ? "ink thick" : "ink thin", style, "stroke-dasharray": look.dash, d }));
        chart.mark(chart.marker(look, margin, own, 3, first));
        row.runs.forEach((run, s) => strips[i][s].setAttribute("class", saved(run, margin, best) ? "ink filled" : "ink hollow faint"));
        cells[i].lastElementChild.textContent = `${own} of ${row.runs.length}`;
      });
    };

    return {
      draw,
      told: ({ margin }) => rows.map((row, i) => `${names[i]}: ${count(row, margin)} saved`).join("; "),
    };
  });
}
