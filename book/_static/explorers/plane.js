// The study's stored runs on the plane of KL and held-out utility, each with its texts at the start, halfway and at the
// end. A group's texts lie in a script beside this one, which is loaded when one of its runs is chosen: that works from
// a file, too.
"use strict";

{
  const home = document.currentScript.src;
  const texts = new Map(); // name of a group -> its runs' looks, once they are there
  const waiting = new Map();
  explorer.texts = (name, runs) => {
    texts.set(name, runs);
    waiting.get(name)?.forEach((arrive) => arrive());
  };

  const load = (name, arrive) => {
    if (texts.has(name)) return arrive();
    if (waiting.has(name)) return waiting.get(name).push(arrive);
    waiting.set(name, [arrive]);
    const script = document.createElement("script");
    script.src = new URL(`plane-${name}.js`, home);
    document.head.append(script);
  };

  explorer("plane", ({ root, form, data, set }) => {
    const { groups, looks } = data;
    const pairs = (run) => [[0, run[0]], run.slice(1, 3), run.slice(3)]; // KL and utility of each look
    for (const group of groups) {
      const [, setting, pilot, arm] = group.name.match(/^(\w+)(-pilot)?-(.+)$/);
      Object.assign(group, { setting: setting + (pilot ? " (pilot)" : ""), arm });
      group.runs = group.runs.map(pairs);
    }
    const chart = explorer.chart(root.querySelector("[data-chart=runs]"));
    const svg = root.querySelector("svg[data-chart]");
    const blocks = [...root.querySelectorAll(".look")];
    const choice = form.elements.run;
    const title = (group, s) => `${group.setting}: ${group.arm}, seed ${group.seeds[s]}`;
    const fixed = (value, digits) => value.toFixed(digits).replace("-", "\u2212");
    choice.replaceChildren(
      ...groups.map((group) => {
        const part = document.createElement("optgroup");
        part.label = `${group.setting}: ${group.arm}`;
        part.append(...group.seeds.map((seed, s) => new Option(title(group, s), `${group.name}-${seed}`)));
        return part;
      }),
    );
    const chosen = (run) => {
      const cut = run.lastIndexOf("-");
      const group = groups.find((each) => each.name === run.slice(0, cut));
      return { group, s: group.seeds.indexOf(Number(run.slice(cut + 1))) };
    };
    let points = []; // of the setting that is shown

    const read = (group, s, question) => {
      const own = texts.get(group.name)[s];
      blocks.forEach((block, at) => {
        const [kl, utility] = group.runs[s][at];
        const [ofText, text] = own[at].texts[question];
        block.querySelector(".numbers").textContent =
          `KL ${fixed(kl, 1)}, U ${fixed(utility, 2)}, RM ${fixed(own[at].reward, 2)}; this text: U ${fixed(ofText, 2)}`;
        block.querySelector(".text").textContent = text || "(no text)";
      });
    };

    const draw = ({ run, question }) => {
      const { group, s } = chosen(run);
      const shown = groups.filter((each) => each.setting === group.setting);
      const all = shown.flatMap((each) => each.runs.flat());
      const [kls, utilities] = [0, 1].map((i) => all.map((point) => point[i]));
      const [low, high] = [Math.min(0, ...utilities), Math.max(...utilities)];
      const x = [0, 1.05 * Math.max(1, ...kls)];
      chart.axes({ x, y: [low - 0.05 * (high - low), high + 0.1 * (high - low)], xlabel: "KL to the base (nats a text)", ylabel: "held-out utility U" });
      points = [];
      const one = (each, at, thick) => {
        const look = looks[each.arm];
        const line = { class: thick ? "ink thick" : "ink faint", style: chart.ink(look), d: chart.path(3, (t) => each.runs[at][t]) };
        chart.mark(chart.make("path", line));
        for (const t of [1, 2]) {
          const [kl, utility] = each.runs[at][t];
          chart.mark(chart.marker(look, kl, utility, thick ? 6 : 3.5, t === 2));
          points.push({ x: chart.x(kl), y: chart.y(utility), run: `${each.name}-${each.seeds[at]}` });
        }
      };
      for (const each of shown) each.seeds.forEach((_, at) => one(each, at, false));
      one(group, s, true);
      load(group.name, () => form.elements.run.value === run && read(group, s, Number(form.elements.question.value)));
    };

    // The nearest point to a tap, where one is near enough to be meant.
    svg.addEventListener("click", (event) => {
      const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
      const near = points.map((point) => [Math.hypot(point.x - at.x, point.y - at.y), point.run]).sort((a, b) => a[0] - b[0])[0];
      if (!near || near[0] > 24) return;
      choice.value = near[1];
      choice.dispatchEvent(new Event("change", { bubbles: true }));
    });

    return {
      draw,
      told: ({ run, question }) => {
        const { group, s } = chosen(run);
        const [start, half, end] = group.runs[s].map(([, utility]) => utility.toFixed(2));
        return `${title(group, s)}: utility ${start} at the start, ${half} halfway, ${end} at the end. Question: ${data.prompts[question]}`;
      },
    };
  });
}
