// What a word, a symbol, an equation or a citation means, beside it: on hover, on focus, on tap. Escape closes.
// The texts are on the page (book/_ext/fpo_helps.py); nothing is fetched. Also the line that shows how far one has read.
"use strict";

document.addEventListener("DOMContentLoaded", () => {
  const article = document.querySelector("article.bd-article");
  if (!article) return;

  const line = document.createElement("div");
  line.className = "reading-progress";
  line.setAttribute("aria-hidden", "true");
  document.body.append(line);
  if (!CSS.supports("animation-timeline: scroll()")) {
    const follow = () => {
      const {scrollTop, scrollHeight, clientHeight} = document.documentElement;
      line.style.transform = `scaleX(${scrollTop / Math.max(1, scrollHeight - clientHeight)})`;
    };
    addEventListener("scroll", follow, {passive: true});
    follow();
  }

  const box = document.createElement("div");
  box.id = "help-box";
  box.className = "help-box";
  box.hidden = true;
  box.setAttribute("role", "tooltip");
  document.body.append(box);

  const sources = new Map(); // what can be asked -> the element with its text
  for (const place of article.querySelectorAll(".helped")) {
    const source = document.getElementById(place.dataset.help);
    // A formula that is a target has a link to itself, which is not what is asked.
    if (source) sources.set(place.hasAttribute("tabindex") ? place : place.querySelector("a") ?? place, source);
  }
  // Citations carry their text as a title, which a keyboard or a finger cannot ask for.
  const texts = article.querySelector(".help-texts") ?? article.appendChild(document.createElement("div"));
  texts.classList.add("help-texts", "noprint");
  texts.hidden = true;
  const citations = new Map();
  for (const link of article.querySelectorAll('a.reference[title][href*="references.html#"]')) {
    if (!citations.has(link.title)) {
      const text = texts.appendChild(document.createElement("div"));
      text.id = `help-citation-${citations.size}`;
      text.append(link.title);
      citations.set(link.title, text);
    }
    sources.set(link, citations.get(link.title));
    link.removeAttribute("title");
  }

  let current = null, leaving = 0;

  const fill = source => {
    const copy = source.cloneNode(true);
    for (const node of copy.querySelectorAll(".eqno, .headerlink, mjx-assistive-mml")) node.remove();
    for (const node of [copy, ...copy.querySelectorAll("[id], [tabindex]")]) {
      if (!node.closest("defs, symbol")) node.removeAttribute("id");
      for (const name of ["tabindex", "role", "aria-label"]) node.removeAttribute(name);
    }
    for (const link of copy.querySelectorAll("a:not(svg a)")) link.replaceWith(...link.childNodes);
    copy.hidden = false;
    box.replaceChildren(copy);
  };

  const move = target => {
    const EDGE = 8, GAP = 6;
    const [at] = target.getClientRects();
    if (!at) return;
    box.style.left = box.style.top = "0";
    const {offsetWidth: width, offsetHeight: height} = box;
    const room = document.documentElement.clientWidth;
    const left = Math.max(EDGE, Math.min(at.left, room - width - EDGE));
    const below = at.bottom + GAP + height <= innerHeight || at.top - GAP - height < 0;
    const origin = box.offsetParent?.getBoundingClientRect() ?? {left: 0, top: 0};
    box.style.left = `${left - origin.left}px`;
    box.style.top = `${(below ? at.bottom + GAP : at.top - GAP - height) - origin.top}px`;
  };

  const show = target => {
    clearTimeout(leaving);
    if (current === target) return;
    current = target;
    fill(sources.get(target));
    box.hidden = false;
    move(target);
  };
  const hide = () => {
    clearTimeout(leaving);
    current = null;
    box.hidden = true;
  };
  // Time to get from the word into the box.
  const leave = () => {
    clearTimeout(leaving);
    leaving = setTimeout(hide, 200);
  };

  let tapped = false, shownBefore = null;
  document.addEventListener("pointerdown", event => {
    tapped = event.pointerType !== "mouse";
    shownBefore = current;
    if (current && !current.contains(event.target) && !box.contains(event.target)) hide();
  });
  for (const [target, source] of sources) {
    target.setAttribute("aria-describedby", source.id);
    target.addEventListener("pointerenter", event => event.pointerType === "mouse" && show(target));
    target.addEventListener("pointerleave", event => event.pointerType === "mouse" && leave());
    target.addEventListener("focus", () => show(target));
    target.addEventListener("blur", hide);
    // The first tap on a link asks, the second follows it.
    target.addEventListener("click", event => {
      if (tapped && shownBefore !== target) event.preventDefault();
      if (tapped) show(target);
    });
  }
  box.addEventListener("pointerenter", () => clearTimeout(leaving));
  box.addEventListener("pointerleave", event => event.pointerType === "mouse" && leave());
  document.addEventListener("keydown", event => {
    if (event.key === "Escape" && current) hide();
  });
  addEventListener("resize", hide);
});
