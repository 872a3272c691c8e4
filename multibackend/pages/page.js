"use strict";
(() => {
  const root = document.documentElement;
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const plots = [...document.querySelectorAll(".plot")];
  const boxes = [...document.querySelectorAll(".scroll")];
  const config = { displayModeBar: false, displaylogo: false, showTips: false };
  const touch = matchMedia("(pointer: coarse)").matches;
  const PAPER = 660; // pixels of a printed page's width

  // "--name" stands for the page's colour of that name
  const themed = (value, style) => {
    if (typeof value === "string") return value.startsWith("--") ? style.getPropertyValue(value).trim() : value;
    if (Array.isArray(value)) return value.map((item) => themed(item, style));
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, themed(item, style)]));
  };

  const set = (target, path, value) => {
    const parts = path.split(".");
    const last = parts.pop();
    let place = target;
    for (const part of parts) place = place[part] ??= {};
    place[last] = value;
  };

  const draw = (width) => {
    const style = getComputedStyle(root);
    for (const plot of plots) {
      const figure = themed(figures[plot.id], style);
      const wide = width ?? plot.clientWidth;
      for (const trace of figure.data) {
        if (trace.type !== "heatmap") continue; // one text for each row, filled in for each cell
        const cell = (row, x, text) => row.replace("{x}", () => x).replace("{text}", () => text);
        trace.text = trace.text.map((row, y) => row.map((text, x) => cell(trace.meta[y], trace.x[x], text)));
      }
      figure.layout.width = wide;
      figure.layout.dragmode = touch ? false : "zoom"; // a finger that drags scrolls the page
      if (wide < 520) {
        figure.layout.font.size = 12;
        for (const [path, value] of Object.entries(figure.narrow ?? {})) set(figure, path, value);
      }
      Plotly.react(plot, figure.data, figure.layout, config);
    }
    for (const box of boxes) { // only a box that scrolls is a stop for the tab key; one that is folded away may become one
      box.tabIndex = box.clientWidth && box.scrollWidth <= box.clientWidth && box.scrollHeight <= box.clientHeight ? -1 : 0;
    }
  };

  // base85 in Python's alphabet, but "," for "<": five characters are four bytes
  const ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;,=>?@^_`{|}~";
  const decoded = (text) => {
    const digits = new Uint8Array(128);
    [...ALPHABET].forEach((letter, value) => { digits[letter.charCodeAt(0)] = value; });
    const missing = (5 - (text.length % 5)) % 5; // the last group is filled up, as it was when it was written
    const padded = text + "~".repeat(missing);
    const bytes = new DataView(new ArrayBuffer((padded.length / 5) * 4));
    for (let from = 0, to = 0; from < padded.length; from += 5, to += 4) {
      let value = 0;
      for (let place = 0; place < 5; place++) value = value * 85 + digits[padded.charCodeAt(from + place)];
      bytes.setUint32(to, value);
    }
    return bytes.buffer.slice(0, bytes.byteLength - missing);
  };

  // plotly stands in the page deflated; nothing is fetched
  const unpack = async () => {
    const packed = decoded(document.getElementById("plotly").textContent.trim());
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
    const code = document.createElement("script");
    code.textContent = await new Response(stream).text();
    document.head.append(code);
  };

  let drawn = false;
  const redraw = (width) => { if (drawn) draw(width); };
  const start = async () => {
    try {
      if (plots.length) await unpack();
      draw();
      drawn = true;
    } catch (error) { // a browser from before 2023: the captions and the tables have the numbers
      for (const plot of plots) plot.textContent = `The plot cannot be drawn here (${error}); the table has its numbers.`;
    }
    root.dataset.drawn = "yes";
  };
  start();

  let width = innerWidth;
  let waiting = 0;
  addEventListener("resize", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => { if (innerWidth !== width) { width = innerWidth; redraw(); } }, 100);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => redraw());
  addEventListener("beforeprint", () => { root.classList.add("printing"); redraw(PAPER); });
  addEventListener("afterprint", () => { root.classList.remove("printing"); redraw(); });

  const filter = document.getElementById("filter");
  if (filter) {
    const rows = [...document.querySelectorAll("#parameter-table tbody tr")];
    const texts = rows.map((row) => row.textContent.toLowerCase());
    const status = document.getElementById("filter-status");
    const apply = () => {
      const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      rows.forEach((row, index) => {
        row.hidden = !words.every((word) => texts[index].includes(word));
        shown += row.hidden ? 0 : 1;
      });
      status.textContent = `${shown} of ${rows.length} shown`;
    };
    filter.closest(".filter").hidden = false;
    filter.addEventListener("input", apply);
    apply();
  }
})();
