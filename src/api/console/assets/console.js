// Draws the plots of the overview from the `data-columns` attribute of each section, refreshes the overview, and shows
// local times.
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
        // Without a pointer, the legend shows the last minute.
        hooks: { setLegend: [(plot) => { if (plot.legend.idx == null) plot.setLegend({ idx: plot.data[0].length - 1 }, false); }] },
        scales: { y: { range: (_, min, max) => [0, Math.max(max * 1.05, 1)] } },
        axes: [
          { ...axis, size: 28, space: 70, values: [[3600, "{HH}:{mm}", null, null, null, null, null, null, 1], [60, "{HH}:{mm}", null, null, null, null, null, null, 1]] },
          { ...axis, size: 52, space: 30, values: (_, values) => values.map(number), incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 2e5, 5e5, 1e6] },
        ],
        series: [
          { label: "minute", value: "{HH}:{mm}" },
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
      plot.setLegend({ idx: columns[0].length - 1 }, false);
      plots.push([plot, holder]);
    }
  };

  const drawAll = () => {
    if (typeof uPlot === "undefined") return;
    for (const [plot] of plots.splice(0)) plot.destroy();
    document.querySelectorAll("[data-columns]").forEach(draw);
  };
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  addEventListener("resize", () => {
    for (const [plot, holder] of plots) plot.setSize({ width: holder.clientWidth, height: HEIGHT });
  });

  /** Adds the local time to the title of each time, which has the exact time in UTC. */
  const addLocalTimes = () => {
    for (const element of document.querySelectorAll("time[datetime]")) {
      const at = new Date(element.dateTime);
      element.title = `${element.dateTime}\n${at.toLocaleString(undefined, { dateStyle: "medium", timeStyle: "long" })}`;
    }
  };

  /** Replaces the parts of the page with the attribute `data-live`, except one that somebody uses. */
  const refresh = async () => {
    const response = await fetch(location.href);
    if (!response.ok) throw new Error(response.status);
    const next = new DOMParser().parseFromString(await response.text(), "text/html");
    const selection = getSelection();
    for (const part of document.querySelectorAll("[data-live]")) {
      const inUse = part.contains(document.activeElement) || (!selection.isCollapsed && selection.containsNode(part, true));
      const replacement = next.getElementById(part.id);
      if (inUse || !replacement) continue;
      const open = part.querySelector("details")?.open;
      if (open && replacement.querySelector("details")) replacement.querySelector("details").open = true;
      part.replaceWith(replacement);
    }
    drawAll();
    addLocalTimes();
  };

  const REFRESH_MS = 15_000;
  const toggle = document.getElementById("auto-refresh");
  if (toggle) {
    const failed = document.getElementById("refresh-failed");
    toggle.closest("label").hidden = false;
    toggle.checked = localStorage.getItem("auto-refresh") !== "off";
    toggle.addEventListener("change", () => localStorage.setItem("auto-refresh", toggle.checked ? "on" : "off"));
    setInterval(() => {
      if (!toggle.checked || document.hidden) return;
      refresh().then(() => { failed.textContent = ""; }, () => { failed.textContent = "The last refresh failed."; });
    }, REFRESH_MS);
  }

  drawAll();
  addLocalTimes();
})();
