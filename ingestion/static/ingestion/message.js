/* The tabs of a message (WAI-ARIA's tabs pattern), wherever on a page it is and whenever it came. */
"use strict";

(() => {
  const tabs = (list) => [...list.querySelectorAll('[role="tab"]')];

  function select(tab) {
    for (const other of tabs(tab.parentElement)) {
      const chosen = other === tab;
      other.setAttribute("aria-selected", String(chosen));
      other.tabIndex = chosen ? 0 : -1;
      document.getElementById(other.getAttribute("aria-controls")).hidden = !chosen;
    }
  }

  function clicked(event) {
    const tab = event.target.closest('[data-message] [role="tab"]');
    if (tab) select(tab);
  }

  function pressed(event) {
    const tab = event.target.closest('[data-message] [role="tab"]');
    if (!tab || event.ctrlKey || event.metaKey || event.altKey) return;
    const all = tabs(tab.parentElement);
    const at = all.indexOf(tab);
    const next = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: all.length - 1 }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    const chosen = all[(next + all.length) % all.length];
    select(chosen);
    chosen.focus();
  }

  document.addEventListener("click", clicked);
  document.addEventListener("keydown", pressed);
})();
