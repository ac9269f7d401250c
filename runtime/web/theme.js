// Before anything is drawn: the theme that was chosen. Not a module, which would come too late.
"use strict";
(() => {
  let chosen = null;
  try {
    chosen = localStorage.getItem("rk-theme");
  } catch {
    // A browser that keeps nothing shows what the system has.
  }
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
})();
