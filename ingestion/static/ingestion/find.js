/* The search of everything: "/" and Ctrl-K open it on every page.
 *
 * The list comes from the server as it is shown; nothing here makes markup. In the mail view "/" is the
 * mail's own (mail.js), and Ctrl-K opens this.
 */
"use strict";

document.addEventListener("DOMContentLoaded", () => {
  const dialog = document.querySelector("dialog[data-find]");
  if (!dialog) return;
  const PAUSE_MS = 150; // between the last key and the question
  const field = dialog.querySelector("input[name=q]");
  const list = dialog.querySelector("#ing-finds");
  let under_way = null; // the AbortController of the latest question
  let timer = 0;
  let answered = null; // what the list is of

  const lines = () => [...list.querySelectorAll("[role=option]")];
  const chosen = () => lines().find((line) => line.getAttribute("aria-selected") === "true");

  function choose(line) {
    for (const one of lines()) one.setAttribute("aria-selected", String(one === line));
    if (!line) {
      field.removeAttribute("aria-activedescendant");
      return;
    }
    field.setAttribute("aria-activedescendant", line.id);
    line.scrollIntoView({ block: "nearest" });
  }

  async function ask() {
    if (under_way) under_way.abort();
    under_way = new AbortController();
    const { signal } = under_way;
    const asked = field.value;
    const url = `${dialog.dataset.find}?${new URLSearchParams({ q: asked })}`;
    try {
      const answer = await fetch(url, {
        credentials: "same-origin",
        headers: { "X-Part": "found" },
        signal,
      });
      if (!answer.ok || answer.redirected) throw new Error(`answered ${answer.status}`);
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
      list.replaceChildren(...[...fresh.body.childNodes].map((node) => document.adoptNode(node)));
      answered = asked;
      choose(lines()[0]);
    } catch (error) {
      if (error.name !== "AbortError") window.location.assign(url); // the page says what is wrong
    }
  }

  function open() {
    if (dialog.open) return;
    dialog.showModal();
    field.select();
    ask();
  }

  function typed() {
    window.clearTimeout(timer);
    timer = window.setTimeout(ask, PAUSE_MS);
  }

  function step(by) {
    const all = lines();
    if (!all.length) return;
    choose(all[(all.indexOf(chosen()) + by + all.length) % all.length]);
  }

  /* Enter may be faster than the answer: then the page finds it. */
  function submitted(event) {
    const line = chosen();
    if (!line || answered !== field.value) return;
    event.preventDefault();
    line.click();
  }

  function inDialog(event) {
    const by = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!by) return;
    event.preventDefault();
    step(by);
  }

  function pressed(event) {
    if (event.isComposing || event.altKey || dialog.open) return;
    const command = (event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "k";
    const typing = event.target.closest?.("input, textarea, select, [contenteditable]");
    const slash = event.key === "/" && !event.ctrlKey && !event.metaKey && !typing;
    if (!command && !(slash && !document.querySelector("[data-mail]"))) return;
    if (document.querySelector("dialog[open]")) return;
    event.preventDefault();
    event.stopImmediatePropagation(); // a list's own search would take the "/" as well
    open();
  }

  dialog.addEventListener("keydown", inDialog);
  dialog.addEventListener("submit", submitted);
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close(); // beside it
  });
  list.addEventListener("pointermove", (event) => {
    const line = event.target.closest("[role=option]");
    if (line && line !== chosen()) choose(line);
  });
  field.setAttribute("role", "combobox");
  field.setAttribute("aria-expanded", "true");
  field.setAttribute("aria-controls", list.id);
  field.addEventListener("input", typed);
  window.addEventListener("keydown", pressed, true);
  document.addEventListener("click", (event) => {
    if (!event.target.closest("[data-find-open]") || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    open();
  });
});
