/* Many accounts from a CSV file: looked at, tested, added. The file stays in this page, which sends it for
   each of the three; nothing keeps it, and no password is shown. */
"use strict";

document.addEventListener("DOMContentLoaded", () => {
  const form = document.querySelector("[data-account-list]");
  if (!form) return;
  const part = (name) => form.querySelector(`[data-part="${name}"]`);
  const [file, said, table, progress] = ["file", "said", "table", "progress"].map(part);
  const [testButton, addPassed, addAll, report] = ["test", "add-passed", "add-all", "report"].map(part);
  const MOST_BYTES = Number(form.dataset.mostBytes);
  let text = "";
  const rows = new Map(); // line -> what is known of it

  const good = () => [...rows.values()].filter((row) => !row.faults.length && !row.added);
  const passed = () => good().filter((row) => row.tested && row.ok);
  const fresh = () => passed().filter((row) => !row.warnings.length); // not archived already
  const accounts = (number) => `${number.toLocaleString("en")} account${number === 1 ? "" : "s"}`;

  function say(words, tone) {
    said.textContent = words;
    said.hidden = !words;
    said.dataset.tone = tone || "danger";
  }

  function cell(line, words, classes) {
    const made = document.createElement("td");
    made.textContent = words;
    made.className = classes || "";
    line.append(made);
    return made;
  }

  function show(row) {
    const line = document.createElement("tr");
    cell(line, row.line);
    cell(line, row.name, "ing-name");
    cell(line, row.account, "ing-name");
    const badge = document.createElement("span");
    badge.className = "ing-badge";
    row.badge = badge;
    cell(line, "").append(badge);
    row.cell = cell(line, "", "ing-wide");
    table.tBodies[0].append(line);
    if (row.faults.length) mark(row, "danger", "Faulty", row.faults.join(" "));
    else if (row.awaits) mark(row, "info", "Right", "Its owner grants access later.");
    else if (row.warnings.length) mark(row, "warning", "Archived already", "");
    else mark(row, "neutral", "Right", "");
  }

  function mark(row, tone, result, words) {
    row.result = result;
    const left = row.warnings.length && !row.added ? "So it is left out, unless you add all." : "";
    row.words = [words, ...row.warnings, left].filter(Boolean).join(" ");
    row.badge.dataset.tone = tone;
    row.badge.textContent = result;
    row.cell.textContent = row.words;
  }

  function offer() {
    testButton.hidden = !good().length || good().every((row) => row.tested);
    testButton.textContent = `Test ${accounts(good().filter((row) => !row.tested).length)}`;
    addPassed.hidden = !fresh().length;
    addPassed.textContent = `Add ${fresh().length.toLocaleString("en")} that passed`;
    addAll.hidden = !good().length || good().length === fresh().length;
    const all = [...rows.values()].some((row) => row.added) ? "the other" : "all";
    addAll.textContent = `Add ${all} ${good().length.toLocaleString("en")}`;
    report.hidden = !rows.size;
  }

  // Tells whether it was done to the end; what was wrong is said.
  async function ask(what, lines, hear) {
    let whole = true;
    const stop = (why) => {
      whole = false;
      say(why);
    };
    const body = new FormData();
    body.set("csrfmiddlewaretoken", form.elements.csrfmiddlewaretoken.value);
    body.set("text", text);
    body.set("lines", lines.join(","));
    if (form.elements.auto_import.checked) body.set("auto_import", "on");
    form.setAttribute("aria-busy", "true");
    form.querySelectorAll("button, input").forEach((control) => { control.disabled = true; });
    progress.hidden = !lines.length;
    progress.max = lines.length || 1;
    progress.value = 0;
    try {
      await eachLine(form.dataset[what], body, (told) => {
        progress.value += 1;
        if (told.error) stop(told.error);
        else hear(told);
      });
    } catch (error) {
      stop(`No answer: ${error.message}. Try it again.`);
    }
    form.removeAttribute("aria-busy");
    form.querySelectorAll("button, input").forEach((control) => { control.disabled = false; });
    progress.hidden = true;
    offer();
    return whole;
  }

  file.hasChangeListener = true; // else unfold's own would look for a text field beside it
  file.addEventListener("change", async () => {
    const [chosen] = file.files;
    if (!chosen) return;
    const bytes = chosen.size > MOST_BYTES ? null : await chosen.arrayBuffer();
    file.value = ""; // so that the same file, mended, can be chosen again
    rows.clear();
    table.tBodies[0].replaceChildren();
    table.hidden = true;
    say("");
    offer();
    if (bytes === null) {
      say(`“${chosen.name}” is larger than 1 MB. Make several files.`);
      return;
    }
    try {
      text = new TextDecoder("utf-8", { fatal: true }).decode(bytes);
    } catch {
      say("It is not in UTF-8, and a password must not be guessed. In Excel save it as “CSV UTF-8 (comma delimited)”.");
      return;
    }
    await ask("check", [], (row) => {
      rows.set(row.line, row);
      show(row);
    });
    table.hidden = !rows.size;
    const faulty = [...rows.values()].filter((row) => row.faults.length).length;
    if (rows.size) {
      const tail = faulty ? `, ${faulty.toLocaleString("en")} faulty: these are left out.` : ". Nothing is stored yet.";
      say(`${accounts(rows.size)} in “${chosen.name}”${tail}`, faulty ? "warning" : "info");
    }
  });

  testButton.addEventListener("click", async () => {
    const wanted = good().filter((row) => !row.tested);
    wanted.forEach((row) => mark(row, "neutral", "Waits", ""));
    const whole = await ask("test", wanted.map((row) => row.line), (told) => {
      const row = rows.get(told.line);
      row.tested = true;
      row.ok = told.ok;
      mark(row, told.ok ? (row.warnings.length ? "warning" : "success") : "danger", told.ok ? "Passed" : "Failed", told.text);
    });
    if (!whole) return;
    const failed = wanted.filter((row) => row.tested && !row.ok).length;
    say(`${accounts(passed().length)} passed, ${failed.toLocaleString("en")} failed. Nothing is stored yet.`, failed ? "warning" : "success");
  });

  async function add(wanted) {
    const whole = await ask("save", wanted.map((row) => row.line), (told) => {
      const row = rows.get(told.line);
      row.added = told.ok;
      if (!told.ok) {
        mark(row, "danger", "Refused", told.text);
        return;
      }
      mark(row, "success", "Added", "");
      const link = document.createElement("a");
      link.href = told.url;
      link.className = "ing-link";
      link.textContent = "Its page";
      row.cell.prepend(link, " ");
    });
    if (!whole) return;
    const added = [...rows.values()].filter((row) => row.added).length;
    say(`${accounts(added)} added of ${rows.size.toLocaleString("en")}. Delete the file: it has the passwords.`, added === rows.size ? "success" : "warning");
  }

  addPassed.addEventListener("click", () => add(fresh()));
  addAll.addEventListener("click", () => add(good()));

  /* A cell that no spreadsheet takes for a formula: names are whatever people chose. */
  function harmless(words) {
    const shown = /^[=+\-@\t\r]/.test(words) ? `'${words}` : words;
    return `"${shown.replaceAll('"', '""')}"`;
  }

  report.addEventListener("click", () => {
    const lines = [["line", "name", "account", "result", "what"]];
    rows.forEach((row) => lines.push([String(row.line), row.name, row.account, row.result, row.words]));
    const csv = lines.map((line) => line.map(harmless).join(",")).join("\r\n");
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([`\ufeff${csv}\r\n`], { type: "text/csv" }));
    link.download = "accounts-report.csv";
    link.click();
    URL.revokeObjectURL(link.href);
  });
});
