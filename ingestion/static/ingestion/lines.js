/* Posts a form and shows each JSON object that comes back, a line each, as it comes. */
"use strict";

async function eachLine(address, form, show) {
  const response = await fetch(address, { method: "POST", body: form });
  if (response.status === 413) throw new Error("it is too large for the service");
  if (!response.ok) throw new Error(`the service answered ${response.status}`);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    lines.forEach((line) => show(JSON.parse(line)));
  }
}
