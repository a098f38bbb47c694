// The search page: which sections hold all the words, best first, each with a link to itself and a piece of its text.
// Words are split and stemmed by Sphinx's language_data.js; the texts come from book/_ext/fpo_search.py.
"use strict";

(() => {
  const SHOWN = 50, BEFORE = 80, AFTER = 160; // results, and letters of text around the first word that is found
  const query = (new URLSearchParams(location.search).get("q") ?? "").trim();
  for (const field of document.querySelectorAll('input[name="q"]')) field.value = query;
  const place = document.getElementById("search-results");
  if (!query || !place) return;

  const stemmer = new Stemmer();
  const WORD = /[\p{Letter}\p{Number}_]+/gu;
  const stems = new Map();
  const stem = word => {
    const small = word.toLowerCase();
    if (!stems.has(small)) stems.set(small, stemmer.stemWord(small));
    return stems.get(small);
  };
  const words = text => text.match(WORD) ?? [];
  const asked = words(query).map(word => word.toLowerCase());
  const telling = asked.filter(word => !stopwords.includes(word));
  const wanted = telling.length ? telling : asked;

  // A word is found by its stem; one that is being typed also by its beginning.
  const hits = (word, found) => stem(found) === stem(word) || (word.length > 2 && found.toLowerCase().startsWith(word));
  const count = (word, text) => words(text).filter(found => hits(word, found)).length;

  const results = [];
  for (const {page, title: book, parts} of window.bookSections ?? []) {
    for (const [anchor, title, text] of parts) {
      let score = title.toLowerCase() === query.toLowerCase() ? 100 : 0;
      const all = wanted.every(word => {
        const here = 10 * count(word, title) + Math.min(count(word, text), 5);
        score += here;
        return here > 0;
      });
      if (all) results.push({score, page, anchor, title, book, text});
    }
  }
  results.sort((a, b) => b.score - a.score); // stable: equals stay in reading order

  const add = (parent, tag, text = "", name = "") => {
    const child = parent.appendChild(document.createElement(tag));
    child.textContent = text;
    if (name) child.className = name;
    return child;
  };

  const piece = (parent, text) => {
    const first = [...text.matchAll(WORD)].find(found => wanted.some(word => hits(word, found[0])))?.index ?? 0;
    let from = Math.max(0, first - BEFORE);
    if (from) from = text.indexOf(" ", from) + 1;
    let to = Math.min(text.length, first + AFTER);
    if (to < text.length) to = text.lastIndexOf(" ", to);
    if (from) parent.append("… ");
    let done = from;
    const shown = text.slice(0, Math.max(to, first));
    for (const found of shown.matchAll(WORD)) {
      if (found.index < from || !wanted.some(word => hits(word, found[0]))) continue;
      parent.append(shown.slice(done, found.index));
      add(parent, "mark", found[0]);
      done = found.index + found[0].length;
    }
    parent.append(shown.slice(done));
    if (to < text.length) parent.append(" …");
  };

  const many = results.length === 1 ? "1 section" : `${results.length || "No"} sections`;
  const told = `${many} with “${query}”` + (results.length > SHOWN ? `, the first ${SHOWN} shown` : "");
  add(place, "p", told, "search-summary").setAttribute("role", "status");
  const list = add(place, "ul", "", "search");
  const root = document.documentElement.dataset.content_root ?? "./";
  for (const {page, anchor, title, book, text} of results.slice(0, SHOWN)) {
    const item = add(list, "li");
    add(item, "a", title).href = root + page + (anchor ? `#${anchor}` : "");
    if (title !== book) add(item, "span", ` in ${book}`, "search-page");
    piece(add(item, "p", "", "search-piece"), text);
  }
})();
