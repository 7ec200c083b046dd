"use strict";

// Django's boxes for choosing many have labels on elements without a role. They are made at "load".
window.addEventListener("load", () => setTimeout(() => {
  for (const label of document.querySelectorAll(".help-tooltip[aria-label]")) {
    label.setAttribute("role", "img");
  }
}));
