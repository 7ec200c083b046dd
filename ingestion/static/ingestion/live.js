/* Keeps what the page shows of sources and their runs up to date, without a reload.
 *
 * Elements say what they show: data-live-source is the source's id, data-live the name of a text,
 * of "progress", or of a verb's button. The words come from the server; nothing here makes markup.
 * Parts marked data-refresh are fetched again from the page itself when a run begins or ends, when the status
 * changes, and now and then while something runs.
 */
"use strict";

(() => {
  const BUSY_MS = 1500;
  const IDLE_MS = 8000;
  const AFTER_ERROR_MS = 15000;
  const seen = new Map(); // source id -> the run and the status that the page shows
  const PARTS_EVERY = 10; // while something runs, the parts are fetched at every tenth question
  let asked = 0;
  const MOST_SOURCES = 80; // of one question: its address must stay under 4,000 characters
  let address = "";

  /* Asks as nobody: a page that is left open must not keep its session. */
  const ask = (url) =>
    fetch(url, {
      credentials: "same-origin",
      headers: { Accept: "application/json, text/html", "X-Background": "live" },
    });

  /* Every page with live elements has at least one bar, shown or hidden. */
  const elements = () => document.querySelectorAll("[data-live-source]");

  function showText(element, text) {
    if (element.textContent !== text) element.textContent = text;
  }

  function showProgress(element, run) {
    const another = "runOnly" in element.dataset && run && element.dataset.showing !== run.run;
    element.hidden = !run || another;
    if (element.hidden) return;
    element.dataset.showing = run.run;
    const bar = element.querySelector("progress");
    if (run.percent === null) bar.removeAttribute("value");
    else bar.value = run.percent;
    const percent = run.percent === null ? "" : `${run.percent} %`;
    const parts = { title: run.title, percent, text: run.text, warning: run.warning };
    for (const [name, text] of Object.entries(parts)) {
      const part = element.querySelector(`[data-part="${name}"]`);
      if (part) showText(part, text);
    }
  }

  function showVerb(element, refusal, next) {
    element.classList.toggle("is-primary", element.value === next);
    element.disabled = Boolean(refusal) || element.form.getAttribute("aria-busy") === "true";
    element.title = refusal;
  }

  /* The link to the field that is wrong; hidden where none is. */
  function showMend(element, mend) {
    element.hidden = !mend;
    if (!mend) return;
    element.href = mend.url;
    showText(element.querySelector('[data-part="label"]'), mend.label);
  }

  function show(element, state) {
    const name = element.dataset.live;
    if (name === "progress") showProgress(element, state.run);
    else if (name === "verb") showVerb(element, state.refusals[element.value], state.next);
    else if (name === "mend") showMend(element, state.mend);
    else if (name in state.texts) showText(element, state.texts[name]);
    if (name === "status") element.dataset.tone = state.tone;
    if (name === "status" || name === "message") element.title = state.texts.message;
  }

  async function refreshParts() {
    const response = await ask(window.location.href);
    if (!response.ok || response.redirected) return;
    const fresh = new DOMParser().parseFromString(await response.text(), "text/html");
    const found = new Map();
    fresh.querySelectorAll("[data-refresh]").forEach((part) => found.set(part.dataset.refresh, part));
    document.querySelectorAll("[data-refresh]").forEach((part) => {
      const replacement = found.get(part.dataset.refresh);
      if (replacement) part.replaceWith(document.adoptNode(replacement));
    });
  }

  async function poll() {
    const ids = [...new Set([...elements()].map((element) => element.dataset.liveSource))].slice(
      0,
      MOST_SOURCES,
    );
    const query = new URLSearchParams(ids.map((id) => ["id", id]));
    const response = await ask(`${address}?${query}`);
    if (response.redirected) {
      const { pathname, search } = window.location; // to the sign-in, and back here
      window.location.replace(pathname + search);
      throw new Error("signed out");
    }
    if (!response.ok) throw new Error(`answered ${response.status}`);
    const { sources } = await response.json();
    let changed = false;
    let busy = false;
    for (const id of ids) {
      const state = sources[id];
      if (!state) continue;
      const now = `${state.run ? state.run.run : ""} ${state.texts.status}`;
      changed ||= seen.has(id) && seen.get(id) !== now;
      busy ||= state.run !== null;
      seen.set(id, now);
    }
    for (const element of elements()) {
      const state = sources[element.dataset.liveSource];
      if (state) show(element, state);
    }
    asked += 1;
    const old = busy && asked % PARTS_EVERY === 0;
    if ((changed || old) && document.querySelector("[data-refresh]")) await refreshParts();
    return busy;
  }

  async function follow() {
    let wait = IDLE_MS;
    if (!document.hidden) {
      try {
        wait = (await poll()) ? BUSY_MS : IDLE_MS;
        document.documentElement.classList.remove("ing-stale");
      } catch (error) {
        console.warn("The page is not being updated:", error.message);
        document.documentElement.classList.add("ing-stale");
        wait = AFTER_ERROR_MS;
      }
    }
    window.setTimeout(follow, document.hidden ? BUSY_MS : wait);
  }

  /* Something of the page goes on that is no source's: its parts are fetched until it is over. */
  async function followParts() {
    if (!document.querySelector("[data-busy]")) return;
    if (!document.hidden) await refreshParts().catch(() => {});
    window.setTimeout(followParts, BUSY_MS);
  }

  function markBusy(event) {
    const form = event.target;
    if (!form.matches("form[data-verbs]")) return;
    form.setAttribute("aria-busy", "true");
    // Later, because a button that is disabled now would not be sent.
    window.setTimeout(() => form.querySelectorAll("button").forEach((b) => (b.disabled = true)), 0);
  }

  /* A browser passes over autofocus while Alpine still hides the page (x-cloak). */
  window.addEventListener("load", () => {
    const wanted = document.querySelector("#main [autofocus], #content [autofocus]");
    if (wanted && document.activeElement === document.body) wanted.focus();
  });

  document.addEventListener("DOMContentLoaded", () => {
    document.addEventListener("submit", markBusy);
    window.setTimeout(followParts, BUSY_MS);
    const bars = document.querySelectorAll('[data-live="progress"]');
    if (!bars.length) return;
    address = bars[0].dataset.address;
    // What changes before the first answer is noticed as well.
    bars.forEach((bar) => {
      const { liveSource, showing, status } = bar.dataset;
      seen.set(liveSource, `${showing} ${status}`);
    });
    window.setTimeout(follow, BUSY_MS);
  });
})();
