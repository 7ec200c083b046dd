/* Shows what belongs to the chosen way and scope of a rule, and hides the rest. Without it all show. */
"use strict";

document.addEventListener("DOMContentLoaded", () => {
  const belongs = {
    recipients: ["way", "mail"],
    digest: ["way", "mail"],
    webhook: ["way", "webhook"],
    url: ["way", "ping"],
    sources: ["which", "chosen"],
  };

  function show() {
    for (const [field, [choice, value]] of Object.entries(belongs)) {
      const chosen = document.querySelector(`input[name="${choice}"]:checked`);
      const row = document.querySelector(`.field-${field}`);
      if (chosen && row) row.classList.toggle("ing-hidden", chosen.value !== value);
    }
  }

  document.querySelectorAll('input[name="way"], input[name="which"]').forEach((input) => {
    input.addEventListener("change", show);
  });
  show();
});
