// One switch for the code of a page: it opens what is folded, or hides every cell's source. The session remembers it.
"use strict";

document.addEventListener("DOMContentLoaded", () => {
  const cells = document.querySelectorAll("article div.cell_input");
  const button = document.querySelector(".code-switch");
  if (!cells.length || !button) return;

  const read = () => {
    try {
      return sessionStorage.getItem("code");
    } catch {
      return null; // a browser that stores nothing: the switch works, and forgets
    }
  };
  const remember = (code) => {
    try {
      sessionStorage.setItem("code", code);
    } catch {
      // as above
    }
  };

  const what = button.querySelector(".what");
  const status = document.createElement("span");
  status.className = "visually-hidden";
  status.setAttribute("role", "status");

  const apply = (code) => {
    document.documentElement.dataset.code = code ?? "";
    if (code) {
      for (const cell of cells) {
        const fold = cell.closest("details.hide");
        if (fold) fold.open = code === "shown";
      }
    }
    what.textContent = code === "shown" ? "Hide all code" : "Show all code";
  };

  apply(read());
  button.addEventListener("click", () => {
    const code = document.documentElement.dataset.code === "shown" ? "hidden" : "shown";
    apply(code);
    remember(code);
    status.textContent = code === "shown" ? "All code is shown" : "All code is hidden";
  });
  button.after(status);
});
