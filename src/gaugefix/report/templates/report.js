// Draws the plots from the JSON block in the colours of the page, and switches between light and dark.
(() => {
  "use strict";
  const root = document.documentElement;
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const prefersDark = window.matchMedia("(prefers-color-scheme: dark)");
  const button = document.getElementById("theme");

  function remembered(value) {
    try {
      if (value !== undefined) localStorage.setItem("gaugefix-theme", value);
      return localStorage.getItem("gaugefix-theme");
    } catch {
      return null; // storage is off for local files in some browsers
    }
  }

  function isDark() {
    return root.dataset.theme ? root.dataset.theme === "dark" : prefersDark.matches;
  }

  function isNarrow() {
    return window.innerWidth < 640;
  }

  // Replaces every "var:--name" by the value of that CSS variable.
  function coloured(value) {
    if (typeof value === "string" && value.startsWith("var:--")) {
      return getComputedStyle(root).getPropertyValue(value.slice(4)).trim();
    }
    if (Array.isArray(value)) return value.map(coloured);
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, coloured(v)]));
    }
    return value;
  }

  // The end of a long name, which tells one layer from another, where there is no room for all of it.
  function shortened(label) {
    const text = new DOMParser().parseFromString(label, "text/html").body.textContent;
    if (text.length <= 13) return label;
    return "…" + text.slice(-12).replace(/&/g, "&amp;").replace(/</g, "&lt;");
  }

  function fitted(axis, narrow) {
    if (!narrow) return axis;
    return {
      ...axis,
      ...(axis.ticktext && { ticktext: axis.ticktext.map(shortened) }),
      ...(axis.dtick === "D1" && { dtick: "D2" }),
    };
  }

  function layout(figure) {
    const narrow = isNarrow();
    const axis = {
      gridcolor: "var:--line", zerolinecolor: "var:--line", linecolor: "var:--line", tickcolor: "var:--line",
      automargin: true, fixedrange: true, ticks: "outside", ticklen: 4,
    };
    const own = figure.layout;
    const named = figure.data.filter((trace) => trace.name && trace.showlegend !== false).length;
    return coloured({
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, size: narrow ? 12 : 13, color: "var:--soft" },
      margin: { l: 8, r: 16, t: 16, b: 8 }, height: figure.height + (narrow ? 18 * named : 0),
      legend: { orientation: "h", x: 0, y: 1.04, yanchor: "bottom", font: { size: 12 } },
      hoverlabel: { bgcolor: "var:--card", bordercolor: "var:--line", font: { color: "var:--ink" } },
      ...own, xaxis: fitted({ ...axis, ...own.xaxis }, narrow), yaxis: fitted({ ...axis, ...own.yaxis }, narrow),
    });
  }

  function draw() {
    for (const [name, figure] of Object.entries(figures)) {
      const place = document.getElementById("plot-" + name);
      const data = isNarrow() ? figure.data.map((t) => (t.type === "heatmap" ? { ...t, showscale: false } : t)) : figure.data;
      Plotly.react(place, coloured(data), layout(figure), { displayModeBar: false, responsive: true });
    }
    button.textContent = isDark() ? "Light" : "Dark";
    button.setAttribute("aria-label", "Switch to " + (isDark() ? "light" : "dark") + " colours");
  }

  const saved = remembered();
  if (saved === "light" || saved === "dark") root.dataset.theme = saved;
  button.hidden = false;
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    remembered(root.dataset.theme);
    draw();
  });
  prefersDark.addEventListener("change", draw);
  draw();
})();
