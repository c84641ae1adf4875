// The curves of a page. Python gives them as data (curves.py); this file draws them and answers to hand and keyboard.
// State lives in the address after #, so that a page that loads itself again, and a link to it, show the same.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("curves").textContent);
  const AXES = { tokens: "tokens", flops: "FLOPs", seconds: "time", step: "steps" };
  const DASHES = ["", "7 3", "2 3", "9 3 2 3", "4 2", "1 2", "12 4", "5 2 1 2"];
  const LEADER = 24; // pixels from the end of a curve to a name that stands elsewhere
  const SVG = "http://www.w3.org/2000/svg";
  const state = { x: "tokens", smooth: 3, log: false, zoom: null, at: null, paper: false, hidden: new Set() };
  const charts = [];

  // ---- numbers and words

  const PREFIXES = [[1e24, "Y"], [1e21, "Z"], [1e18, "E"], [1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]];

  function value(v) { // five significant digits
    if (v === null || v === undefined) return "—";
    const size = Math.abs(v);
    if (size !== 0 && (size < 1e-3 || size >= 1e9)) return v.toExponential(4);
    return Number(v.toPrecision(5)).toLocaleString("en", { maximumFractionDigits: 8 });
  }

  function short(v) { // for ticks
    const size = Math.abs(v);
    for (const [scale, letter] of PREFIXES) if (size >= scale) return `${Number((v / scale).toPrecision(6))} ${letter}`;
    return size !== 0 && size < 1e-4 ? v.toExponential(0) : String(Number(v.toPrecision(6)));
  }

  function time(seconds) {
    if (seconds < 120) return `${Number(seconds.toPrecision(3))} s`;
    const minutes = seconds / 60;
    if (minutes < 120) return `${Number(minutes.toPrecision(3))} min`;
    const hours = minutes / 60;
    return hours < 72 ? `${Number(hours.toPrecision(3))} h` : `${Number((hours / 24).toPrecision(3))} days`;
  }

  const place = (v) => (state.x === "seconds" ? time(v) : `${short(v)} ${AXES[state.x]}`);

  // ---- curves

  function places(series) { return data.tracks[series.track][state.x]; }

  function smoothed(values, share) { // a centred running mean; shorter at the ends, so that nothing is shifted
    const half = Math.round((values.length * share) / 2);
    if (half === 0) return values; // too few to smooth
    const sums = [0], counts = [0];
    values.forEach((v, i) => {
      sums.push(sums[i] + (v ?? 0));
      counts.push(counts[i] + (v === null ? 0 : 1));
    });
    return values.map((v, i) => {
      const low = Math.max(0, i - half), high = Math.min(values.length, i + half + 1);
      return counts[high] > counts[low] ? (sums[high] - sums[low]) / (counts[high] - counts[low]) : null;
    });
  }

  function nearest(xs, x) { // index of the point nearest to x, or -1
    let best = -1;
    xs.forEach((one, i) => {
      if (one !== null && (best < 0 || Math.abs(one - x) < Math.abs(xs[best] - x))) best = i;
    });
    return best;
  }

  function shown(chart) { return chart.spec.series.filter((s) => !hiddenIn(s)); }
  function hiddenIn(series) { return state.hidden.has(series.run === undefined ? series.name : `run ${series.run}`); }
  function curve(series) { return series.smooth && state.smooth > 0 ? smoothed(series.values, state.smooth / 100) : series.values; }
  function paint(series) {
    if (series.ramp !== undefined) return `color-mix(in oklab, var(--first), var(--last) ${Math.round(100 * series.ramp)}%)`;
    return series.colour === "muted" ? "var(--muted)" : `var(--c${series.colour % 8})`;
  }

  function range() { // of the x axis, over every chart, so that all have the same
    if (state.zoom) return state.zoom;
    let low = Infinity, high = -Infinity;
    for (const { spec } of charts) for (const s of spec.series) for (const x of places(s)) {
      if (x !== null) { low = Math.min(low, x); high = Math.max(high, x); }
    }
    return low < high ? [low, high] : low === Infinity ? [0, 1] : [low, low + 1];
  }

  function heights(chart, [left, right]) { // of the y axis: what is visible, without the spikes of the first steps
    let low = Infinity, high = -Infinity, most = -Infinity;
    const settled = state.zoom ? left : left + 0.05 * (right - left);
    for (const s of shown(chart)) {
      const xs = places(s);
      for (const values of [s.values, s.low ?? [], s.high ?? []]) values.forEach((v, i) => {
        if (v === null || xs[i] === null || xs[i] < left || xs[i] > right) return;
        most = Math.max(most, v);
        if (chart.spec.zero && xs[i] < settled && xs.length > 20) return;
        low = Math.min(low, v); high = Math.max(high, v);
      });
    }
    if (low === Infinity) return [0, 1, most];
    if (logarithmic(chart)) return [low > 0 ? low / 1.08 : high / 1e6, 1.08 * high, most];
    if (chart.spec.zero) return [Math.min(0, low), high > 0 ? 1.12 * high : 1, most];
    const margin = 0.06 * (high - low || Math.abs(high) || 1);
    return [low - margin, high + margin, most];
  }

  function logarithmic(chart) { return chart.spec.log || (state.log && chart.spec.unit === "nats a token"); }

  function ticks(low, high, wanted) {
    const rough = (high - low) / wanted, power = 10 ** Math.floor(Math.log10(rough));
    const step = power * [1, 2, 5, 10].find((m) => m * power >= rough);
    const found = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high * (1 + 1e-12); i++) found.push(i * step);
    return found;
  }

  function timeTicks(low, high, wanted) { // round in seconds, minutes, hours or days
    const unit = high > 72 * 3600 ? 86400 : high > 7200 ? 3600 : high > 120 ? 60 : 1;
    return ticks(low / unit, high / unit, wanted).map((t) => t * unit);
  }

  function logTicks(low, high) {
    const found = [];
    for (let p = Math.floor(Math.log10(low)); p <= Math.ceil(Math.log10(high)); p++) {
      for (const m of high / low > 300 ? [1] : high / low > 8 ? [1, 2, 5] : [1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9]) {
        const t = m * 10 ** p;
        if (t >= low && t <= high) found.push(t);
      }
    }
    return found;
  }

  // ---- drawing

  function add(parent, name, attributes, text) {
    const made = document.createElementNS(SVG, name);
    for (const [key, v] of Object.entries(attributes)) made.setAttribute(key, v);
    if (text !== undefined) made.textContent = text;
    parent.append(made);
    return made;
  }

  function line(xs, ys, x, y) { // a path, broken where a value is missing
    let path = "", pen = "M";
    xs.forEach((one, i) => {
      if (one === null || ys[i] === null || !Number.isFinite(y(ys[i]))) { pen = "M"; return; }
      path += `${pen}${x(one).toFixed(1)} ${y(ys[i]).toFixed(1)}`;
      pen = "L";
    });
    return path;
  }

  function band(xs, low, high, x, y) {
    const known = xs.map((one, i) => i).filter((i) => xs[i] !== null && low[i] !== null && high[i] !== null);
    if (known.length < 2) return "";
    const there = known.map((i) => `${x(xs[i]).toFixed(1)} ${y(high[i]).toFixed(1)}`);
    const back = known.reverse().map((i) => `${x(xs[i]).toFixed(1)} ${y(low[i]).toFixed(1)}`);
    return `M${there.join("L")}L${back.join("L")}Z`;
  }

  function draw(chart) {
    const { spec, svg } = chart;
    const width = state.paper ? (spec.wide ? 720 : 350) : Math.max(240, chart.figure.clientWidth), height = spec.wide ? Math.min(392, 162 + width / 3) : 202;
    const [left, right] = range(), [bottom, top, most] = heights(chart, [left, right]);
    const named = spec.wide && width > 560 && shown(chart).length > 1 && shown(chart).length <= 8;
    const room = named ? Math.min(200, LEADER + 8 + 8 * Math.max(...shown(chart).map((s) => s.name.split(" (")[0].length))) : 12;
    const frame = { left: 52, right: width - room, top: 8, bottom: height - 36 };
    const x = (v) => frame.left + ((v - left) / (right - left)) * (frame.right - frame.left);
    const log = logarithmic(chart), scale = log ? Math.log : (v) => v;
    const y = (v) => frame.bottom - ((scale(v) - scale(bottom)) / (scale(top) - scale(bottom))) * (frame.bottom - frame.top);
    Object.assign(chart, { x, y, frame, left, right });
    svg.replaceChildren();
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);

    const f = spec.factor, levels = log ? logTicks(bottom * f, top * f) : ticks(bottom * f, top * f, 5);
    for (const level of levels) {
      const at = y(level / f);
      add(svg, "line", { x1: frame.left, x2: frame.right, y1: at, y2: at, class: "grid" });
      add(svg, "text", { x: frame.left - 6, y: at + 4, class: "tick", "text-anchor": "end" }, short(level));
    }
    for (const t of (state.x === "seconds" ? timeTicks : ticks)(left, right, Math.max(2, width / 95))) {
      add(svg, "line", { x1: x(t), x2: x(t), y1: frame.bottom, y2: frame.bottom + 4, class: "axis" });
      const end = x(t) > width - 40 ? "end" : "middle";
      add(svg, "text", { x: x(t), y: frame.bottom + 17, class: "tick", "text-anchor": end }, state.x === "seconds" ? time(t) : short(t));
    }
    add(svg, "line", { x1: frame.left, x2: frame.right, y1: frame.bottom, y2: frame.bottom, class: "axis" });
    add(svg, "text", { x: (frame.left + frame.right) / 2, y: height - 4, class: "tick", "text-anchor": "middle" }, AXES[state.x]);

    const clip = add(add(svg, "clipPath", { id: `clip-${chart.number}` }), "rect", {});
    for (const [key, v] of Object.entries({ x: frame.left - 4, y: frame.top - 4, width: frame.right - frame.left + 8, height: frame.bottom - frame.top + 4 })) clip.setAttribute(key, v);
    const inside = add(svg, "g", { "clip-path": `url(#clip-${chart.number})` });
    for (const s of shown(chart)) drawSeries(inside, s, x, y, frame);
    if (named) label(svg, chart, y, frame);
    if (spec.zero && most > top) add(svg, "text", { x: frame.right, y: frame.top + 8, class: "tick over", "text-anchor": "end" }, `↑ up to ${value(most * f)} at the start`);
    chart.cross = add(svg, "g", {});
    chart.selection = add(svg, "rect", { class: "selection", y: frame.top, height: frame.bottom - frame.top, width: 0 });
    svg.setAttribute("aria-label", described(chart));
  }

  function drawSeries(into, s, x, y) {
    const xs = places(s), colour = paint(s), dash = DASHES[s.dash % DASHES.length];
    if (s.alarm_low) add(into, "path", { d: band(xs, s.alarm_low, s.alarm_high, x, y), fill: colour, opacity: 0.13 });
    if (s.low) add(into, "path", { d: band(xs, s.low, s.high, x, y), fill: colour, opacity: 0.2 });
    const drawn = curve(s);
    if (drawn !== s.values) add(into, "path", { d: line(xs, s.values, x, y), stroke: colour, class: "curve", opacity: 0.35, "stroke-width": 0.8 });
    const weight = s.ramp === undefined ? 1.8 : 1.2;
    add(into, "path", { d: line(xs, drawn, x, y), stroke: colour, class: "curve", "stroke-width": weight, "stroke-dasharray": dash });
    const few = xs.filter((one) => one !== null).length;
    if ((s.marker && few <= 60) || few < 3) xs.forEach((one, i) => {
      if (one !== null && s.values[i] !== null) add(into, "circle", { cx: x(one), cy: y(s.values[i]), r: 3, fill: colour });
    });
  }

  function label(svg, chart, y, frame) { // names right of where curves end; a thin line leads to one that had to move
    const ends = shown(chart).map((s) => {
      const values = curve(s), xs = places(s);
      let last = -1;
      values.forEach((v, i) => { if (v !== null && xs[i] !== null && xs[i] <= chart.right) last = i; });
      if (last < 0) return null;
      const name = s.name.split(" (")[0];
      const at = Math.min(frame.bottom, Math.max(frame.top, y(values[last])));
      return { s, name: name.length > 21 ? `${name.slice(0, 20)}…` : name, x: Math.min(frame.right, chart.x(xs[last])), at };
    }).filter((end) => end).sort((one, other) => one.x - other.x);
    while (ends.length) { // those that end at about the same place share a column, from top to bottom as the curves end
      const near = ends.findIndex((end, i) => i > 0 && end.x - ends[i - 1].x > 60);
      const column = ends.splice(0, near < 0 ? ends.length : near).sort((one, other) => one.at - other.at);
      const places = spread(column.map((end) => end.at), 15, frame.top + 6, frame.bottom - 4);
      const led = column.some((end, i) => Math.abs(end.at - places[i]) > 4);
      const x = column.reduce((most, end) => Math.max(most, end.x), 0) + (led ? LEADER : 6);
      const up = x < frame.right ? 6 : -4; // above a curve that ends among others
      column.forEach((end, i) => {
        if (led) add(svg, "path", { d: `M${end.x + 2} ${end.at}L${x - 4} ${places[i]}`, stroke: paint(end.s), class: "leader" });
        add(svg, "text", { x, y: places[i] - up, class: "name", fill: paint(end.s) }, end.name);
      });
    }
  }

  function spread(wanted, gap, low, high) { // sorted places at least gap apart, as near to the wanted ones as can be
    const pools = []; // of places that would overlap, each pool around the mean of what its members want
    wanted.forEach((one, i) => {
      pools.push({ sum: one - gap * i, count: 1 });
      while (pools.length > 1 && pools.at(-2).sum / pools.at(-2).count > pools.at(-1).sum / pools.at(-1).count) {
        const { sum, count } = pools.pop();
        pools.at(-1).sum += sum;
        pools.at(-1).count += count;
      }
    });
    const most = Math.max(low, high - gap * (wanted.length - 1));
    return pools.flatMap(({ sum, count }) => Array(count).fill(sum / count)).map((q, i) => Math.min(most, Math.max(low, q)) + gap * i);
  }

  function described(chart) {
    const told = chart.spec.series.filter((s) => s.ramp === undefined).map((s) => {
      const known = s.values.filter((v) => v !== null), f = chart.spec.factor;
      return `${s.name || chart.spec.title} from ${value(known[0] * f)} to ${value(known.at(-1) * f)}`;
    });
    return `${chart.spec.title}, ${chart.spec.unit}, against ${AXES[state.x]}: ${told.join("; ")}. Arrow keys read values.`;
  }

  // ---- reading values

  function point(chart) { // the cross at state.at, and the values there in the chart's head
    const { spec, cross, frame, x, y } = chart;
    cross.replaceChildren();
    const inside = state.at !== null && state.at >= chart.left && state.at <= chart.right;
    if (inside) add(cross, "line", { x1: x(state.at), x2: x(state.at), y1: frame.top, y2: frame.bottom, class: "cross" });
    spec.series.forEach((s, n) => {
      const xs = places(s), i = inside ? nearest(xs, state.at) : lastOf(s);
      const v = i < 0 ? null : s.values[i];
      const chip = chart.chips[n];
      const drawn = curve(s), mean = v !== null && drawn !== s.values ? ` (mean ${value(drawn[i] * spec.factor)})` : "";
      chip.lastChild.textContent = hiddenIn(s) ? "hidden" : (v === null ? "—" : value(v * spec.factor)) + mean;
      chip.dataset.raw = v === null ? "" : String(v);
      chip.dataset.step = i < 0 ? "" : String(data.tracks[s.track].step[i]);
      if (inside && v !== null && !hiddenIn(s) && y(v) >= frame.top - 4) {
        add(cross, "circle", { cx: x(xs[i]), cy: y(v), r: s.ramp === undefined ? 4 : 2.5, fill: paint(s), class: "dot" });
      }
    });
    chart.where.textContent = inside ? told(spec) : "";
  }

  function told({ series, wide }) { // the place of the cross; where there is room, on every axis
    const track = data.tracks[series[0].track], i = nearest(track[state.x], state.at);
    if (i < 0) return "";
    const step = `step ${track.step[i].toLocaleString("en")}`;
    if (!wide) return step;
    const seconds = track.seconds[i] === null ? "" : ` · ${time(track.seconds[i])}`;
    const flops = state.x === "flops" && track.flops[i] !== null ? ` · ${short(track.flops[i])} FLOPs` : "";
    return `${step} · ${track.tokens[i].toLocaleString("en")} tokens${flops}${seconds}`;
  }

  function lastOf(series) {
    const xs = places(series);
    for (let i = series.values.length - 1; i >= 0; i--) if (series.values[i] !== null && xs[i] !== null) return i;
    return -1;
  }

  function move(at) { state.at = at; charts.forEach(point); }

  function under(chart, event) { // the x value under the pointer
    const box = chart.svg.getBoundingClientRect(), width = Number(chart.svg.getAttribute("viewBox").split(" ")[2]);
    const at = ((event.clientX - box.left) / box.width) * width, { frame, left, right } = chart;
    return left + Math.min(1, Math.max(0, (at - frame.left) / (frame.right - frame.left))) * (right - left);
  }

  function listen(chart) {
    const { svg } = chart;
    let from = null;
    svg.addEventListener("pointerdown", (event) => {
      if (event.pointerType === "mouse") from = under(chart, event);
      move(under(chart, event));
    });
    svg.addEventListener("pointermove", (event) => {
      const at = under(chart, event);
      if (from !== null) {
        chart.selection.setAttribute("x", Math.min(chart.x(from), chart.x(at)));
        chart.selection.setAttribute("width", Math.abs(chart.x(from) - chart.x(at)));
      }
      move(at);
    });
    svg.addEventListener("pointerup", (event) => {
      const ends = from === null ? null : [from, under(chart, event)].sort((a, b) => a - b);
      from = null;
      if (ends && chart.x(ends[1]) - chart.x(ends[0]) > 8) { state.zoom = ends; redraw(); }
      else chart.selection.setAttribute("width", 0);
    });
    svg.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") { from = null; chart.selection.setAttribute("width", 0); move(null); } });
    svg.addEventListener("dblclick", () => { state.zoom = null; redraw(); });
    svg.addEventListener("keydown", (event) => {
      if (event.key === "Escape") { state.zoom = null; redraw(); move(null); return; }
      const by = { ArrowLeft: -1, ArrowRight: 1, PageUp: -20, PageDown: 20 }[event.key];
      const xs = places(shown(chart)[0] ?? chart.spec.series[0]);
      if (by === undefined && event.key !== "Home" && event.key !== "End") return;
      event.preventDefault();
      const now = event.key === "Home" ? 0 : event.key === "End" ? xs.length - 1
        : state.at === null ? (by > 0 ? 0 : xs.length - 1) : Math.min(xs.length - 1, Math.max(0, nearest(xs, state.at) + by));
      if (xs[now] === null) return;
      move(xs[now]);
      const values = chart.chips.map((chip) => chip.textContent).join(", ");
      document.getElementById("spoken").textContent = `${place(xs[now])}: ${values}`;
    });
  }

  // ---- the page

  function build(spec, number) {
    const figure = document.createElement("figure"), head = document.createElement("figcaption");
    figure.className = spec.wide ? "wide" : "";
    figure.dataset.chart = spec.id;
    const title = document.createElement("b"), unit = document.createElement("span"), where = document.createElement("span");
    title.textContent = spec.title;
    unit.textContent = spec.unit;
    unit.className = "unit";
    where.className = "where";
    head.append(title, " ", unit, where);
    const chart = { spec, number, figure, where };
    chart.chips = spec.series.map((s) => chip(s));
    const chips = document.createElement("div");
    chips.className = "chips";
    const layers = spec.series.filter((s) => s.ramp !== undefined).length; // of many the first and last are named
    chips.append(...chart.chips.filter((c, n) => layers <= 3 || [undefined, 0, 1].includes(spec.series[n].ramp)));
    chart.svg = add(figure, "svg", { role: "img", tabindex: 0 });
    figure.prepend(head, chips);
    document.querySelector(`[data-group="${spec.group}"]`).append(figure);
    charts.push(chart);
  }

  function chip(s) { // the name of a curve with its value; a button that hides it
    const button = document.createElement("button");
    button.type = "button";
    button.className = "chip";
    const swatch = add(button, "svg", { viewBox: "0 0 26 10", "aria-hidden": "true" });
    add(swatch, "line", { x1: 0, x2: 26, y1: 5, y2: 5, stroke: paint(s), "stroke-width": 2.5, "stroke-dasharray": DASHES[s.dash % DASHES.length] });
    if (s.marker) add(swatch, "circle", { cx: 13, cy: 5, r: 3.5, fill: paint(s) });
    const figure = document.createElement("output");
    button.append(s.name ? ` ${s.name} ` : " ", figure);
    button.addEventListener("click", () => {
      const key = s.run === undefined ? s.name : `run ${s.run}`;
      if (!state.hidden.delete(key)) state.hidden.add(key);
      redraw();
    });
    return button;
  }

  function redraw() {
    for (const chart of charts) {
      draw(chart);
      chart.chips.forEach((one, n) => one.setAttribute("aria-pressed", String(!hiddenIn(chart.spec.series[n]))));
    }
    charts.forEach(point);
    document.querySelector("#whole").hidden = state.zoom === null;
    document.querySelector("#smooth-told").textContent = state.smooth > 0 ? `${state.smooth} %` : "off";
    remember();
  }

  function remember() {
    const parts = { x: state.x, smooth: state.smooth, log: Number(state.log), zoom: state.zoom ? state.zoom.join("_") : "", hidden: [...state.hidden].join("|") };
    const told = Object.entries(parts).filter(([, v]) => v !== "").map(([k, v]) => `${k}=${encodeURIComponent(v)}`).join("&");
    if (location.hash.slice(1) !== told) location.replace(`#${told}`);
  }

  function recall() {
    const parts = new URLSearchParams(location.hash.slice(1));
    if (parts.get("x") in AXES) state.x = parts.get("x");
    if (parts.has("smooth")) state.smooth = Math.min(20, Math.max(0, Number(parts.get("smooth")) || 0));
    state.log = parts.get("log") === "1";
    const ends = (parts.get("zoom") ?? "").split("_").map(Number);
    if (ends.length === 2 && ends[0] < ends[1]) state.zoom = ends;
    for (const name of (parts.get("hidden") ?? "").split("|")) if (name) state.hidden.add(name);
  }

  function controls() {
    const choices = document.querySelectorAll("input[name=x]"), smooth = document.querySelector("#smooth"), log = document.querySelector("#log");
    for (const choice of choices) {
      const known = Object.values(data.tracks).some((track) => track[choice.value].some((v) => v !== null));
      choice.disabled = !known;
      if (!known && state.x === choice.value) state.x = "step";
    }
    for (const choice of choices) {
      choice.checked = choice.value === state.x;
      choice.addEventListener("change", () => { state.x = choice.value; state.zoom = null; state.at = null; redraw(); });
    }
    smooth.value = state.smooth;
    smooth.addEventListener("input", () => { state.smooth = Number(smooth.value); redraw(); });
    log.checked = state.log;
    log.addEventListener("change", () => { state.log = log.checked; redraw(); });
    document.querySelector("#whole").addEventListener("click", () => { state.zoom = null; redraw(); });
  }

  recall();
  data.charts.forEach(build);
  controls();
  charts.forEach(listen);
  redraw();
  for (const [when, paper] of [["beforeprint", true], ["afterprint", false]]) {
    addEventListener(when, () => { state.paper = paper; redraw(); });
  }
  let width = innerWidth;
  addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; redraw(); } });
  const again = document.body.dataset.again;
  if (again) setTimeout(() => location.reload(), 1000 * Number(again));
})();
