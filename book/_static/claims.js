// Filters of the claims page. What is chosen stands in the address, so that a view can be linked: ?verdict=partly
"use strict";

document.addEventListener("DOMContentLoaded", () => {
  const cards = [...document.querySelectorAll("li.claim")];
  const bar = document.querySelector(".claims-filters");
  if (!cards.length || !bar) return;

  const facets = ["source", "verdict", "chapter"];
  const status = bar.querySelector(".claims-status");
  status.setAttribute("role", "status");
  // Each link of the bar sets its facet; "all" clears it.
  const links = facets.flatMap((facet) =>
    [...bar.querySelectorAll(`ul.by-${facet} a`)].map((link) => ({
      link,
      facet,
      value: new URLSearchParams(link.getAttribute("href")).get(facet),
    })),
  );
  const known = (facet, value) => links.some((each) => each.facet === facet && each.value === value);
  const read = (search) => {
    const given = new URLSearchParams(search);
    const pairs = facets.map((facet) => [facet, given.get(facet)]);
    return Object.fromEntries(pairs.filter(([facet, value]) => value && known(facet, value)));
  };
  const fits = (card, chosen) =>
    Object.entries(chosen).every(([facet, value]) => card.classList.contains(`${facet}-is-${value}`));
  const count = (chosen) => cards.filter((card) => fits(card, chosen)).length;

  let chosen = {};
  const apply = (next) => {
    chosen = next;
    for (const card of cards) {
      card.hidden = !fits(card, chosen);
      const squares = document.querySelectorAll(`.overview-row a[href="#${card.id}"]`);
      for (const square of squares) square.classList.toggle("left-out", card.hidden);
    }
    for (const list of document.querySelectorAll("ul.claims")) {
      list.closest("section").hidden = !list.querySelector("li.claim:not([hidden])");
    }
    for (const { link, facet, value } of links) {
      const { [facet]: own, ...others } = chosen;
      const then = value ? { ...others, [facet]: value } : others;
      link.setAttribute("href", `?${new URLSearchParams(then)}`);
      if ((own ?? null) === value) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
      const number = link.querySelector(".facet-count");
      if (number) number.textContent = count(then);
    }
    const shown = count(chosen);
    status.textContent = shown === cards.length ? `${shown} claims` : `${shown} of ${cards.length} claims`;
  };

  // A link to a claim that the filter leaves out shows all claims again.
  const reveal = () => {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!target?.closest("[hidden]")) return;
    history.replaceState(null, "", location.pathname + location.hash);
    apply({});
    target.scrollIntoView();
  };

  apply(read(location.search));
  reveal();
  window.addEventListener("hashchange", reveal);
  window.addEventListener("popstate", () => apply(read(location.search)));
  document.querySelector("article").addEventListener("click", (event) => {
    const link = event.target.closest('a[href^="?"]');
    if (!link || event.button || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
    event.preventDefault();
    const next = link.getAttribute("href");
    history.pushState(null, "", location.pathname + (next === "?" ? "" : next));
    apply(read(next));
    if (!bar.contains(link)) bar.scrollIntoView();
  });
});
