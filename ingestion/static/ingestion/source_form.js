/* Shows the fields of the provider that is chosen, and hides the others'. Without it all show. */
"use strict";

document.addEventListener("DOMContentLoaded", () => {
  const chosen = document.querySelector('select[name="provider"]');
  if (!chosen) return;

  function showFields() {
    document.querySelectorAll(".provider-fields").forEach((fields) => {
      fields.classList.toggle("ing-hidden", !fields.classList.contains(`provider-${chosen.value}`));
    });
  }

  chosen.addEventListener("change", showFields);
  showFields();
});

/* Test: posts the form as it is, and shows each step as it is done. */
document.addEventListener("DOMContentLoaded", () => {
  const button = document.querySelector("[data-test]");
  const list = document.querySelector("[data-checklist]");
  if (!button) return;

  function show(step) {
    const line = document.createElement("li");
    line.dataset.tone = step.warns ? "warning" : step.ok ? "success" : "danger";
    const title = document.createElement("strong");
    title.textContent = `${step.warns ? "!" : step.ok ? "✓" : "✗"} ${step.title}`;
    line.append(title, ` ${step.text}`);
    list.append(line);
  }

  button.addEventListener("click", async () => {
    button.disabled = true;
    list.replaceChildren();
    list.dataset.state = "running";
    try {
      await eachLine(button.dataset.test, new FormData(button.form), show);
    } catch (error) {
      show({ ok: false, title: "No answer", text: `${error.message}. Try it again.` });
    }
    delete list.dataset.state;
    button.disabled = false;
  });
});

/* Copy beside what is to be copied; a file's text into the field that wants it. */
document.addEventListener("DOMContentLoaded", () => {
  document.querySelectorAll("[data-copy]").forEach((button) => {
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(button.dataset.copy);
      button.textContent = "Copied";
    });
  });

  document.querySelectorAll("textarea[data-file]").forEach((field) => {
    const chosen = document.createElement("input");
    chosen.type = "file";
    chosen.className = "ing-file";
    chosen.hasChangeListener = true; // else unfold's own would write its name into a text field
    chosen.setAttribute("aria-label", `A file with ${field.dataset.file}`);
    chosen.addEventListener("change", async () => {
      if (chosen.files.length) field.value = await chosen.files[0].text();
      chosen.value = "";
    });
    field.after(chosen);
  });
});
