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
