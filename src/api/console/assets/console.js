// Draws the plots of the overview from the `data-columns` attribute of each section.
"use strict";
(() => {
  // The lines of each plot: column index, label, CSS variable of the colour.
  const PLOTS = {
    reused: [[1, "reused", "--first"]],
    minted: [[2, "minted", "--first"]],
    failures: [[3, "failed", "--bad"], [4, "unknown", "--second"]],
    latency: [[5, "median", "--first"], [6, "p95", "--second"]],
  };
  const HEIGHT = 128;
  const number = (value) => (value == null ? "–" : value.toLocaleString("en").replaceAll(",", "\u202f"));
  const plots = [];

  const draw = (section) => {
    const columns = JSON.parse(section.dataset.columns);
    const style = getComputedStyle(section);
    const colour = (name) => style.getPropertyValue(name);
    const axis = { stroke: colour("--muted"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false }, font: "12px system-ui" };
    for (const figure of section.querySelectorAll("[data-plot]")) {
      const lines = PLOTS[figure.dataset.plot];
      const holder = figure.querySelector(".plot");
      const plot = new uPlot({
        width: holder.clientWidth,
        height: HEIGHT,
        tzDate: (seconds) => uPlot.tzDate(new Date(seconds * 1000), "Etc/UTC"),
        cursor: { y: false, drag: { x: false, y: false } },
        scales: { y: { range: (_, min, max) => [0, Math.max(max * 1.05, 1)] } },
        axes: [
          { ...axis, size: 28, space: 70, values: [[3600, "{HH}:{mm}", null, null, null, null, null, null, 1], [60, "{HH}:{mm}", null, null, null, null, null, null, 1]] },
          { ...axis, size: 52, space: 30, values: (_, values) => values.map(number), incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 2e5, 5e5, 1e6] },
        ],
        series: [
          { label: "time", value: "{YYYY}-{MM}-{DD} {HH}:{mm}" },
          ...lines.map(([, label, name], index) => ({
            label,
            value: (_, value) => number(value),
            stroke: colour(name),
            dash: index ? [5, 3] : undefined,
            width: 1.6,
            // Minutes without a mint have no latency. The line spans such gaps, and isolated values are drawn as points.
            spanGaps: figure.dataset.plot === "latency",
            points: { show: figure.dataset.plot === "latency" ? undefined : false, size: 4 },
          })),
        ],
      }, [columns[0], ...lines.map(([column]) => columns[column])], holder);
      plots.push([plot, holder]);
    }
  };

  const drawAll = () => {
    for (const [plot] of plots.splice(0)) plot.destroy();
    document.querySelectorAll("[data-columns]").forEach(draw);
  };
  drawAll();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  addEventListener("resize", () => {
    for (const [plot, holder] of plots) plot.setSize({ width: holder.clientWidth, height: HEIGHT });
  });
})();
