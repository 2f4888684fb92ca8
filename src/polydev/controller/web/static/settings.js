// Settings: secrets that are shown once, and what came of asking a CLI.
import { say } from "./app.js";

const show = (id) => document.getElementById(id).showModal();

document.addEventListener("polydev:done", ({ target, detail }) => {
  if (target.closest("#new-token")) {
    target.closest("dialog").close();
    document.getElementById("made-token-text").textContent = detail.token;
    show("made-token");
  } else if (target.matches("[data-exports]")) {
    document.getElementById("exported-path").textContent = detail.path;
    document.getElementById("exported-text").textContent = JSON.stringify(detail.credentials, null, 1);
    show("exported");
  } else if (target.matches("[data-verdict]")) {
    const isGood = detail.validity === "valid";
    say(detail.refreshed ? `${detail.reason}. The login was refreshed.` : detail.reason, isGood ? "ok" : "attention");
  } else if (target.matches("[data-password]")) {
    const ended = detail.signInsEnded;
    const others = ended === 1 ? "1 other browser was signed out" : `${ended} other browsers were signed out`;
    say(ended ? `Password changed; ${others}.` : "Password changed.");
  }
});

// A secret does not stay in the page when its dialog is closed.
for (const dialog of document.querySelectorAll("dialog:has([data-secret])")) {
  dialog.addEventListener("close", () => {
    for (const secret of dialog.querySelectorAll("[data-secret]")) secret.textContent = "";
  });
}
