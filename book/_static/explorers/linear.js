// The linear game, played again at every turn of a setting: book/_ext/fpo_explorer.py says with which numbers.
//
// All of a run lies in the plane of the first RM w0 and the target t: y = a w0 + b t and w = p w0 + q t. What a seed
// brings are three sums over its normal draws z, from which |w0|^2, w0.t and the noise part of w0 follow for any target
// and any error of the first RM. Formulas and their order are those of fpo/linear.py.
"use strict";

{
  const DIVERGED = 1e6;

  // One arm on all seeds: utility, signal norm and noise norm by iteration and seed.
  const play = (arm, at, game) => {
    const { gamma, action_cost: cost, foresight_steps: k, rm_lr: eta, rm_decay: decay, steps, target, initial_noise: error } = at;
    const { policy_lr: alpha, utility_scale: scale, utility_sharpness: kappa, signal_dimensions: m, inner_steps: inner, draws } = game;
    const through = at.through_oracle ? 1 : 0;
    const seeds = draws.length;
    const record = ["utility", "signal", "noise"].map((name) => [name, new Float64Array((steps + 1) * seeds).fill(NaN)]);
    const { utility, signal, noise } = Object.fromEntries(record);
    const tt = m * target * target;
    for (let s = 0; s < seeds; s++) {
      const [sum, square, noisy] = draws[s];
      const ww = m + 2 * error * sum + error * error * square;
      const wt = target * (m + error * sum);
      const nn = error * error * noisy;
      let a = 0;
      let b = 0;
      let p = 1;
      let q = 0;
      for (let t = 0; t <= steps; t++) {
        let n = a * a * ww + 2 * a * b * wt + b * b * tt;
        let u = scale * Math.exp(-kappa * (n - 2 * (a * wt + b * tt) + tt));
        if (t) {
          const step = 2 * eta * (u - (a * p * ww + (a * q + b * p) * wt + b * q * tt));
          p = (1 - decay) * p + step * a;
          q = (1 - decay) * q + step * b;
        }
        const size = Math.max(n, p * p * ww + 2 * p * q * wt + q * q * tt);
        if (!(size <= DIVERGED * DIVERGED)) break;
        const place = t * seeds + s;
        utility[place] = u;
        noise[place] = Math.abs(a) * Math.sqrt(nn);
        signal[place] = Math.sqrt(Math.max(0, n - a * a * nn));
        // Policy steps: (1 + A) w - A grad U + 2 ((r - U) A' + B' - c) y, in the coordinates of w0 and t.
        for (let i = 0; i < inner && t < steps; i++) {
          if (i) {
            n = a * a * ww + 2 * a * b * wt + b * b * tt;
            u = scale * Math.exp(-kappa * (n - 2 * (a * wt + b * tt) + tt));
          }
          let A = 0;
          let dA = 0;
          if (arm === "relaxed") {
            A = -gamma * n;
            dA = -gamma;
          } else if (arm === "foresight" && k > 0) {
            const power = (1 - 2 * eta * n) ** (k - 1);
            A = power * (1 - 2 * eta * n) - 1;
            dA = -2 * eta * k * power;
          }
          const dB = arm === "practical" ? -gamma : 0;
          const r = a * p * ww + (a * q + b * p) * wt + b * q * tt;
          const slope = through * A * 2 * kappa * u;
          const radial = 2 * ((r - u) * dA + dB - cost);
          a += alpha * ((1 + A) * p + (slope + radial) * a);
          b += alpha * ((1 + A) * q + slope * (b - 1) + radial * b);
        }
      }
    }
    return { utility, signal, noise, seeds, steps };
  };

  // Where the runs ended and what they reached; a run has collapsed that lost more than a share of its peak.
  const count = (run, drop) => {
    const last = run.utility.subarray(run.steps * run.seeds);
    const peaks = Array.from(last, (_, s) => {
      let peak = -Infinity;
      for (let i = s; i < run.utility.length; i += run.seeds) if (run.utility[i] > peak) peak = run.utility[i];
      return peak;
    });
    return {
      collapsed: peaks.filter((peak, s) => !(last[s] >= (1 - drop) * peak)).length,
      diverged: last.filter(Number.isNaN).length,
      end: explorer.median(last),
      peak: explorer.median(peaks),
    };
  };

  explorer("linear", ({ root, form, data, starting, set }) => {
    const { game, looks, claims, drop } = data;
    const time = explorer.chart(root.querySelector("[data-chart=time]"));
    const plane = explorer.chart(root.querySelector("[data-chart=plane]"));
    const rows = Object.fromEntries([...root.querySelectorAll("tr[data-arm]")].map((row) => [row.dataset.arm, row]));
    const found = root.querySelector(".claim-found");
    let counts = {};

    const shown = (state) =>
      claims.findIndex(({ settings }) =>
        Object.entries({ ...starting, ...settings }).every(([key, each]) => String(state[key]) === String(each)),
      );

    const lines = (chart, run, x, y, look, every) => {
      let d = "";
      const points = Math.floor(run.steps / every) + 1;
      for (let s = 0; s < run.seeds; s++) {
        d += chart.path(points, (i) => [x(i * every, s), y(i * every, s)]);
      }
      return chart.make("path", { class: "ink faint", style: chart.ink(look), d });
    };

    const draw = (state) => {
      const began = performance.now();
      const runs = state.arms.map((arm) => [arm, play(arm, state, game)]);
      const took = performance.now() - began;
      counts = Object.fromEntries(runs.map(([arm, run]) => [arm, count(run, drop)]));
      root.querySelector(".took").textContent = `${runs.length * game.draws.length} runs played in ${took.toFixed(0)} ms.`;
      time.axes({ x: [0, state.steps], y: [0, 1.05 * game.utility_scale], xlabel: "iteration", ylabel: "true utility U" });
      const center = Math.sqrt(game.signal_dimensions) * state.target;
      const reach = Math.max(3, 1.5 * center);
      const high = (reach * (plane.bottom - plane.top)) / (plane.right - plane.left); // one unit for both axes
      plane.axes({ x: [0, reach], y: [0, high], xlabel: "signal norm", ylabel: "noise norm" });
      for (const share of [0.2, 0.4, 0.6, 0.8]) {
        const radius = Math.sqrt(Math.log(1 / share) / game.utility_sharpness);
        const r = plane.x(radius) - plane.x(0);
        plane.behind(plane.make("circle", { class: "contour", cx: plane.x(center), cy: plane.y(0), r }));
        const label = { x: plane.x(center), y: plane.y(radius) - 3, class: "muted", "text-anchor": "middle" };
        plane.behind(plane.make("text", label, [`${+(share * game.utility_scale).toPrecision(3)}`]));
      }
      const every = Math.max(1, Math.ceil(state.steps / 80));
      for (const [arm, run] of runs) {
        const look = looks[arm];
        const at = (what) => (t, s) => run[what][t * run.seeds + s];
        time.mark(lines(time, run, (t) => t, at("utility"), look, every));
        plane.mark(lines(plane, run, at("signal"), at("noise"), look, every));
        for (let s = 0; s < run.seeds; s++) {
          const [x, y] = [at("signal")(run.steps, s), at("noise")(run.steps, s)];
          if (x <= reach && y <= high) plane.mark(plane.marker(look, x, y, 2.5));
        }
      }
      for (const [arm, run] of runs) {
        const points = Math.floor(run.steps / every) + 1;
        const middle = (t) => explorer.median(run.utility.subarray(t * run.seeds, (t + 1) * run.seeds));
        const d = time.path(points, (i) => [i * every, middle(i * every)]);
        time.mark(time.make("path", { class: "ink thick", style: time.ink(looks[arm]), "stroke-dasharray": looks[arm].dash, d }));
      }
      for (const [arm, row] of Object.entries(rows)) {
        const own = counts[arm];
        const lost = own?.diverged ? ` (${own.diverged} diverged)` : "";
        const cells = own ? [`${own.collapsed} of ${game.draws.length}${lost}`, own.end.toFixed(2), own.peak.toFixed(2)] : ["", "", ""];
        [...row.querySelectorAll("td")].forEach((cell, i) => (cell.textContent = cells[i]));
      }
      const chosen = shown(state);
      form.elements.claim.value = chosen < 0 ? "" : `${chosen}`;
      found.textContent = chosen < 0 ? data.unclaimed : claims[chosen].found;
    };

    form.elements.claim.addEventListener("change", (event) => {
      event.stopPropagation();
      if (event.target.value !== "") set(claims[event.target.value].settings);
    });

    // The numbers behind the picture, for tests.
    root.play = (arm, state) => play(arm, { ...starting, ...state }, game);

    return {
      draw,
      told: () =>
        Object.entries(counts)
          .map(([arm, own]) => `${arm}: ${own.collapsed} of ${game.draws.length} collapse, median end ${own.end.toFixed(2)}`)
          .join("; "),
    };
  });
}
