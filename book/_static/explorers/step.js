// One step of the loop: who wins a prompt under which rule, as the weight of the penalties slides. A candidate's score is
// r + gamma R; what a rule's R is, fpo/rules.py says. The weight slides in units of the chapter's gamma, with which the
// penalties come.
"use strict";

{
  // The winner's place: the first of the highest scores, of candidates that have a text.
  const winner = (scores, texts) => scores.reduce((best, score, z) => (texts[z] !== "" && (best < 0 || score > scores[best]) ? z : best), -1);
  const fixed = (value) => value.toFixed(2).replace(/^-(0\.00)$/, "$1").replace("-", "\u2212");

  explorer("step", ({ root, form, data }) => {
    const { prompts, gamma, looks } = data;
    const chart = explorer.chart(root.querySelector("[data-chart=scores]"));
    const items = [...root.querySelectorAll(".candidates li")];
    const rows = [...root.querySelectorAll("tr[data-arm]")];
    const reference = root.querySelector(".reference span");
    const most = Number(form.elements.weight.max);
    const penalties = (own, rule, weight) => own.penalty[rule].map((each) => weight * each);
    const scores = (own, rule, weight) => {
      if (rule === "best-of-u") return own.utility;
      if (rule === "standard") return own.reward;
      return penalties(own, rule, weight).map((penalty, z) => own.reward[z] + penalty);
    };
    // Pairs of a rule and its winner, of all rules that are shown here.
    const winners = ({ prompt, weight }) => {
      const own = prompts[prompt];
      return Object.keys(looks).map((rule) => [rule, winner(scores(own, rule, weight), own.texts)]);
    };
    root.winners = (state) => Object.fromEntries(winners(state));

    const drawChart = (own, rule, weight, best) => {
      const look = looks[rule];
      const [first, last] = [0, most].map((end) => scores(own, rule, end));
      const [low, high] = [Math.min(...first, ...last), Math.max(...first, ...last)];
      const air = 0.06 * (high - low || 1);
      const [now, end] = [weight, most].map((each) => each * gamma[rule]);
      chart.axes({ x: [0, end], y: [low - air, high + air], xlabel: `weight \u03b3 of the ${rule} penalty`, ylabel: "score" });
      chart.behind(chart.make("path", { class: "mark", d: `M${chart.x(now)} ${chart.top}V${chart.bottom}` }));
      first.forEach((score, z) => {
        const ink = z === best ? { class: "ink thick", style: chart.ink(look) } : { class: "other" };
        chart.mark(chart.make("path", { ...ink, d: chart.path(2, (i) => [i * end, [score, last[z]][i]]) }));
        chart.mark(chart.make("text", { x: chart.right - 4, y: chart.y(last[z]) - 3, "text-anchor": "end" }, [`${z + 1}`]));
      });
      if (best >= 0) chart.mark(chart.marker(look, now, scores(own, rule, weight)[best], 4));
    };

    const draw = (state) => {
      const { prompt, rule, weight } = state;
      const own = prompts[prompt];
      const won = winners(state);
      const best = Object.fromEntries(won)[rule];
      const [penalty, score] = [penalties(own, rule, weight), scores(own, rule, weight)];
      drawChart(own, rule, weight, best);
      reference.textContent = own.reference;
      items.forEach((item, z) => {
        item.classList.toggle("wins", z === best);
        item.querySelector(".text").textContent = own.texts[z] || "(no text)";
        item.querySelector(".numbers").textContent =
          `reward ${fixed(own.reward[z])}, penalty ${fixed(penalty[z])}, score ${fixed(score[z])}; U ${fixed(own.utility[z])}`;
      });
      rows.forEach((row, i) => {
        const [name, z] = won[i];
        const [ofWeight, ofWinner] = row.querySelectorAll("td");
        ofWeight.textContent = name in gamma ? `${+(weight * gamma[name]).toPrecision(4)}` : "";
        ofWinner.textContent = z < 0 ? "none" : `${z + 1}`;
      });
    };

    return {
      draw,
      told: (state) => {
        const won = winners(state).map(([name, z]) => `${name}: ${z < 0 ? "none" : z + 1}`);
        return `Weights ${state.weight} times the chapter's. Winning candidates: ${won.join(", ")}`;
      },
    };
  });
}
