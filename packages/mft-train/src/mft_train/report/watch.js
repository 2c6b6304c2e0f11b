"use strict";
// Loads the page anew, where the reader is on it, when the run has written more.
const live = document.getElementById("live");
live.textContent = "This page follows the run.";
const timer = setInterval(async () => {
  if (document.hidden) return;
  try {
    const answer = await fetch("/version", { cache: "no-store" });
    if (answer.ok && (await answer.text()) !== document.documentElement.dataset.version) location.reload();
    live.textContent = "This page follows the run.";
  } catch {
    live.textContent = "The server of this page has ended; it shows what was known until then.";
  }
}, 3000);
