"use strict";
// Draws every chart for the page's theme and width, and again when the theme changes; shows a clicked subnet's command.
(() => {
  const themes = JSON.parse(document.getElementById("themes").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const MANY_MARKS = 3000;
  const results = new Map();

  function config(width) {
    const theme = structuredClone(themes[dark.matches ? "dark" : "light"]);
    theme.legend.columns = width < 640 ? 2 : 4;
    if (width < 420) theme.legend.labelLimit = 120;
    if (width < 420) theme.axis.labelFontSize = theme.axis.titleFontSize = theme.legend.labelFontSize = 11;
    return theme;
  }

  function show(figure, datum) {
    const box = figure.querySelector(".picked");
    box.querySelector(".facts").textContent =
      `${datum.arm}, seed ${datum.seed}: ${datum.top1.toFixed(2)}% top-1, ${datum.macs.toFixed(3)} M MACs`;
    box.querySelector("code").textContent = `trainonce extract ${datum.run} ${datum.arch}`;
    box.hidden = false;
  }

  async function draw(place) {
    const spec = JSON.parse(document.getElementById(place.dataset.spec).textContent);
    const rows = Object.values(spec.datasets || {}).reduce((sum, data) => sum + data.length, 0);
    const options = {
      actions: false,
      ast: true,
      renderer: rows > MANY_MARKS ? "canvas" : "svg",
      config: config(place.clientWidth),
      tooltip: { theme: dark.matches ? "dark" : "light" },
    };
    results.get(place)?.finalize();
    const result = await vegaEmbed(place, spec, options);
    results.set(place, result);
    const figure = place.closest("figure");
    if (figure.dataset.clickable) {
      result.view.addEventListener("click", (_event, item) => {
        if (item?.datum?.arch && item.datum.run) show(figure, item.datum);
      });
    }
    place.dataset.drawn = dark.matches ? "dark" : "light";
  }

  async function drawAll() {
    for (const place of document.querySelectorAll(".chart")) await draw(place);
    document.documentElement.dataset.drawn = dark.matches ? "dark" : "light";
  }

  document.addEventListener("click", async (event) => {
    const button = event.target.closest("button.copy");
    if (!button) return;
    const code = button.parentElement.querySelector("code");
    try {
      await navigator.clipboard.writeText(code.textContent);
    } catch {
      window.getSelection().selectAllChildren(code);
      document.execCommand("copy");
    }
    button.textContent = "copied";
    setTimeout(() => { button.textContent = "copy"; }, 1500);
  });

  let drawing = drawAll();
  dark.addEventListener("change", () => { drawing = drawing.then(drawAll); });
})();
