/* Says that a security key did not answer, which allauth's script tells the console alone. */
"use strict";

document.addEventListener("allauth.error", (event) => {
  event.preventDefault();
  let said = document.querySelector("[data-key-failed]");
  if (!said) {
    said = document.createElement("p");
    said.className = "bad";
    said.setAttribute("role", "alert");
    said.setAttribute("data-key-failed", "");
    document.querySelector("main h1").after(said);
  }
  const known = event.detail.exception.name === "InvalidStateError";
  said.textContent = known
    ? "This key is added already."
    : "No key answered. Try again: plug it in or hold it to the device, and touch it when it blinks.";
});
