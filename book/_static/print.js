// Paper is white: the dark theme steps aside while a page is printed, and comes back.
"use strict";

(() => {
  const page = document.documentElement.dataset;
  let screen = null;
  const toPaper = () => {
    if (screen === null && page.theme !== "light") {
      screen = page.theme;
      page.theme = "light";
    }
  };
  const toScreen = () => {
    if (screen !== null) {
      page.theme = screen;
      screen = null;
    }
  };
  window.addEventListener("beforeprint", toPaper);
  window.addEventListener("afterprint", toScreen);
  const paper = window.matchMedia("print");
  paper.addEventListener("change", () => (paper.matches ? toPaper : toScreen)());
})();
