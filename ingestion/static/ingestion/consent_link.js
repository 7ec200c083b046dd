/* Opens the link whose token stands behind the #, and takes it out of the address and the history.
   Without it the link can be pasted into the same form. */
"use strict";

const opening = document.querySelector("[data-open]");

function openLink() {
  const token = location.hash.slice(1);
  if (!token || !opening) return;
  history.replaceState(null, "", location.pathname);
  opening.elements.token.value = token;
  opening.submit();
}

addEventListener("hashchange", openLink);
openLink();

document.querySelectorAll("form[data-busy]").forEach((form) => {
  form.addEventListener("submit", () => {
    const button = form.querySelector("button");
    button.textContent = form.dataset.busy;
    button.disabled = true;
  });
});
