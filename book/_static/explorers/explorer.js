// What all explorers share: a form whose fields are the state, the state in the address, and charts as SVG.
// A page's explorers stand in its HTML (book/_ext/fpo_explorer.py); each calls `explorer(name, start)` in a file of its own.
"use strict";

window.explorer = (name, start) => {
  for (const root of document.querySelectorAll(`.explorer.live[data-explorer="${name}"]`)) begin(root, start);

  function begin(root, start) {
    const form = root.querySelector("form");
    const data = JSON.parse(root.querySelector('script[type="application/json"]').textContent);
    const status = root.querySelector("[role=status]");
    const notice = root.querySelector(".notice");
    // What follows from other fields is no part of the state.
    const own = [...form.elements].filter((field) => field.name && !("derived" in field.dataset));
    const fields = [...new Set(own.map((field) => field.name))];
    const starting = read();
    const view = start({ root, form, data, starting, set });

    // The state: by a field's name a number, a text, a truth or the values of a group of checkboxes.
    function read() {
      return Object.fromEntries(fields.map((key) => [key, value(key)]));
    }

    function value(key) {
      const field = form.elements[key];
      if (field instanceof RadioNodeList) {
        return field[0].type === "radio" ? field.value : [...field].filter((box) => box.checked).map((box) => box.value);
      }
      if (field.type === "checkbox") return field.checked;
      return field.type === "range" ? field.valueAsNumber : field.value;
    }

    // Put texts into fields; what a field does not take is left out and told.
    function write(texts) {
      const refused = [];
      for (const [key, text] of Object.entries(texts)) {
        const field = fields.includes(key) ? form.elements[key] : null;
        if (field === null) refused.push(`there is no ${key} here`);
        else if (field instanceof RadioNodeList) writeGroup(field, key, text.split(",").filter(Boolean), refused);
        else if (field.type === "checkbox") {
          if (text === "yes" || text === "no") field.checked = text === "yes";
          else refused.push(`${key} is yes or no, not ${text}`);
        } else if (field.type === "range") {
          const number = text.trim() === "" ? NaN : Number(text);
          if (Number.isNaN(number)) refused.push(`${key} is a number, not ${text}`);
          else {
            field.value = number;
            const off = Math.abs(field.valueAsNumber - number) > 1e-9;
            if (off) refused.push(`${key} goes from ${field.min} to ${field.max} by ${field.step}, not to ${text}`);
          }
        } else if ([...field.options].some((option) => option.value === text)) field.value = text;
        else refused.push(`${key} is never ${text}`);
      }
      return refused;
    }

    function writeGroup(group, key, wanted, refused) {
      const known = [...group].map((box) => box.value);
      const unknown = wanted.filter((each) => !known.includes(each));
      const many = group[0].type === "radio" && wanted.length !== 1; // or none
      if (unknown.length || many) refused.push(`${key} is one of ${known.join(", ")}, not ${(many ? wanted : unknown).join(", ")}`);
      const taken = wanted.filter((each) => known.includes(each));
      if (!many && (taken.length || !wanted.length)) for (const box of group) box.checked = taken.includes(box.value);
    }

    const text = (each) => (Array.isArray(each) ? each.join(",") : each === true ? "yes" : each === false ? "no" : `${each}`);

    function address(state) {
      const parts = fields.filter((key) => text(state[key]) !== text(starting[key]));
      const query = parts.map((key) => `${key}=${encodeURIComponent(text(state[key])).replaceAll("%2C", ",")}`);
      return `#${root.id}${query.length ? "?" : ""}${query.join("&")}`;
    }

    // The whole state at once, from an object of values: what it does not name is as at the start.
    function set(values, told = true) {
      form.reset();
      const refused = write(Object.fromEntries(Object.entries(values).map(([key, each]) => [key, text(each)])));
      draw();
      if (told) tell();
      return refused;
    }

    function draw() {
      for (const label of form.querySelectorAll(".slider")) {
        label.querySelector(".value").textContent = label.querySelector("input").value;
      }
      view.draw(read());
    }

    // What is told to a screen reader and put into the address waits for the end of a drag.
    function tell() {
      notice.textContent = "";
      status.textContent = view.told(read());
      history.replaceState(history.state, "", address(read()));
    }

    function open() {
      const [, id, query] = location.hash.match(/^#([^?]*)\??(.*)$/s) ?? [];
      if (id !== root.id) return false;
      const refused = set(Object.fromEntries(new URLSearchParams(query)), false);
      status.textContent = view.told(read());
      notice.textContent = refused.length ? `From the address: ${refused.join("; ")}.` : "";
      root.scrollIntoView();
      return true;
    }

    let waiting = 0;
    form.addEventListener("input", () => {
      cancelAnimationFrame(waiting);
      waiting = requestAnimationFrame(draw);
    });
    form.addEventListener("change", () => {
      cancelAnimationFrame(waiting);
      draw();
      tell();
    });
    form.addEventListener("submit", (event) => event.preventDefault());
    form.querySelector("button.reset")?.addEventListener("click", () => set({}));
    window.addEventListener("hashchange", open);
    if (!open()) draw();
    root.dataset.ready = "";
  }
};

// A chart on an <svg> with the axes' ranges: scales, ticks, and what draws in arms' colors.
window.explorer.chart = (svg) => {
  const [, , width, height] = svg.getAttribute("viewBox").split(" ").map(Number);
  const left = 38;
  const right = width - 14;
  const top = 10;
  const bottom = height - 36;
  const layers = ["grid", "marks", "axes"].map((name) => svg.appendChild(make("g", { class: name })));
  const clip = `${svg.closest(".explorer").id}-${svg.dataset.chart}`;
  svg.prepend(make("clipPath", { id: clip }, [make("rect", { x: left, y: top, width: right - left, height: bottom - top })]));
  layers[0].setAttribute("clip-path", `url(#${clip})`);
  layers[1].setAttribute("clip-path", `url(#${clip})`);

  function make(tag, attributes, children = []) {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [key, each] of Object.entries(attributes)) node.setAttribute(key, each);
    node.append(...children);
    return node;
  }

  function ticks(low, high) {
    const rough = (high - low) / 5;
    const size = 10 ** Math.floor(Math.log10(rough));
    const step = size * [1, 2, 5, 10].find((each) => each * size >= rough * 0.999);
    const found = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i++) found.push(i * step);
    return found;
  }

  const chart = { make, left, right, top, bottom };
  chart.axes = ({ x, y, xlabel, ylabel }) => {
    chart.x = (value) => left + ((value - x[0]) / (x[1] - x[0])) * (right - left);
    chart.y = (value) => bottom - ((value - y[0]) / (y[1] - y[0])) * (bottom - top);
    layers.forEach((layer) => layer.replaceChildren());
    const short = (value) => `${+value.toPrecision(6)}`.replace("-", "\u2212");
    const parts = [make("path", { class: "axis", d: `M${left} ${top}V${bottom}H${right}` })];
    for (const value of ticks(...x)) {
      parts.push(make("path", { class: "axis", d: `M${chart.x(value)} ${bottom}v4` }));
      parts.push(make("text", { x: chart.x(value), y: bottom + 15, "text-anchor": "middle" }, [short(value)]));
    }
    for (const value of ticks(...y)) {
      parts.push(make("path", { class: "axis", d: `M${left} ${chart.y(value)}h-4` }));
      parts.push(make("text", { x: left - 7, y: chart.y(value) + 4, "text-anchor": "end" }, [short(value)]));
    }
    const middle = (top + bottom) / 2;
    parts.push(make("text", { x: (left + right) / 2, y: height - 6, "text-anchor": "middle" }, [xlabel]));
    parts.push(make("text", { transform: `translate(11 ${middle}) rotate(-90)`, "text-anchor": "middle" }, [ylabel]));
    layers[2].append(...parts);
  };
  chart.behind = (...nodes) => layers[0].append(...nodes);
  chart.mark = (...nodes) => layers[1].append(...nodes);
  // Lines through points (x, y), one after the other; a gap where a number is missing.
  chart.path = (count, at) => {
    let d = "";
    let drawn = false;
    for (let i = 0; i < count; i++) {
      const [x, y] = at(i);
      if (Number.isFinite(x) && Number.isFinite(y)) d += `${drawn ? "L" : "M"}${chart.x(x).toFixed(1)} ${chart.y(y).toFixed(1)}`;
      drawn = Number.isFinite(x) && Number.isFinite(y);
    }
    return d;
  };
  // An arm's color follows the theme: see book/_static/explorers.css.
  chart.ink = (look) => `--light:${look.light};--dark:${look.dark}`;
  chart.marker = (look, x, y, size, filled = true, attributes = {}) =>
    make("path", {
      class: filled ? "ink filled" : "ink hollow",
      style: chart.ink(look),
      d: look.marker,
      transform: `translate(${chart.x(x).toFixed(1)} ${chart.y(y).toFixed(1)}) scale(${size})`,
      ...attributes,
    });
  return chart;
};

window.explorer.median = (values) => {
  const sorted = [...values].filter((value) => !Number.isNaN(value)).sort((a, b) => a - b);
  const half = sorted.length / 2;
  return sorted.length ? (sorted[Math.ceil(half) - 1] + sorted[Math.floor(half)]) / 2 : NaN;
};
