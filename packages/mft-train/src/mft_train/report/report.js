"use strict";
// Reads values off a chart under the pointer. The curves' points are (step, height in 1/10000 of the chart).
const readout = document.getElementById("readout");
for (const chart of document.querySelectorAll("svg.chart")) {
  const last = Number(chart.dataset.last), low = Number(chart.dataset.low), high = Number(chart.dataset.high);
  let curves, cross;
  chart.addEventListener("pointermove", (event) => {
    curves ??= Array.from(chart.querySelectorAll("path[data-label]"), (path) => ({
      label: path.dataset.label,
      points: Array.from(path.getAttribute("d").matchAll(/(\d+) (\d+)/g), (pair) => [Number(pair[1]), Number(pair[2])]),
    })).filter((curve) => curve.points.length);
    if (!curves.length) return;
    const box = chart.getBoundingClientRect();
    const step = ((event.clientX - box.left) / box.width) * last;
    const nearest = curves.map(({ label, points }) => ({
      label, point: points.reduce((best, point) => (Math.abs(point[0] - step) < Math.abs(best[0] - step) ? point : best)),
    })).sort((a, b) => a.point[1] - b.point[1]);
    const at = nearest.reduce((best, { point }) => (Math.abs(point[0] - step) < Math.abs(best - step) ? point[0] : best), Infinity);
    const lines = nearest.slice(0, 12).map(({ label, point: [own, y] }) => {
      const value = Number((high - (y / 10000) * (high - low)).toPrecision(4));
      return `${value}  ${label}${own === at ? "" : ` (step ${own})`}`;
    });
    readout.textContent = [`step ${at}`, ...lines].join("\n");
    readout.hidden = false;
    const left = event.clientX + 14, width = readout.offsetWidth;
    readout.style.left = `${Math.max(4, left + width > innerWidth ? event.clientX - width - 14 : left)}px`;
    readout.style.top = `${Math.min(event.clientY + 14, innerHeight - readout.offsetHeight - 4)}px`;
    if (!cross) {
      cross = chart.appendChild(document.createElementNS(chart.namespaceURI, "line"));
      cross.setAttribute("class", "cross");
      cross.setAttribute("y2", "100%");
    }
    for (const end of ["x1", "x2"]) cross.setAttribute(end, `${(100 * at) / last}%`);
  });
  chart.addEventListener("pointerleave", () => {
    readout.hidden = true;
    cross?.remove();
    cross = undefined;
  });
}
