// Draws the plots of the overview, from the columns in its sections.
"use strict";
(() => {
  // Column and name of each line, in the order of the plot's legend.
  const PLOTS = {
    handouts: [[1, "reused"], [2, "minted"]],
    failures: [[3, "failed"], [4, "unknown"]],
    latency: [[5, "median"], [6, "p95"]],
  };
  const drawn = [];

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
        height: 160,
        tzDate: (seconds) => uPlot.tzDate(new Date(seconds * 1000), "Etc/UTC"),
        cursor: { y: false, drag: { x: false, y: false } },
        scales: { y: { range: (_, min, max) => [0, Math.max(max * 1.05, 1)] } },
        axes: [
          { ...axis, space: 70, values: [[3600, "{HH}:{mm}", null, null, null, null, null, null, 1], [60, "{HH}:{mm}", null, null, null, null, null, null, 1]] },
          { ...axis, size: 52, space: 36, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 2e5, 5e5, 1e6] },
        ],
        series: [
          { label: "time", value: "{YYYY}-{MM}-{DD} {HH}:{mm}" },
          ...lines.map(([, label], index) => ({
            label,
            stroke: colour(index ? "--second" : "--first"),
            dash: index ? [5, 3] : undefined,
            width: 1.6,
            points: { show: false },
          })),
        ],
      }, [columns[0], ...lines.map(([column]) => columns[column])], holder);
      drawn.push([plot, holder]);
    }
  };

  const drawAll = () => {
    for (const [plot] of drawn.splice(0)) plot.destroy();
    document.querySelectorAll("[data-columns]").forEach(draw);
  };
  drawAll();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  addEventListener("resize", () => {
    for (const [plot, holder] of drawn) plot.setSize({ width: holder.clientWidth, height: 160 });
  });
})();
