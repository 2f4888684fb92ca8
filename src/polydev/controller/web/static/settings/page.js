// Settings: new tokens, exported logins, results of checks and password changes.

import { toast } from "../shared/ui.js";

const show = (id) => document.getElementById(id).showModal();

document.addEventListener("polydev:done", ({ target, detail }) => {
  if (target.closest("#new-token")) {
    target.closest("dialog").close();
    document.getElementById("created-token-text").textContent = detail.token;
    show("created-token");
  } else if (target.matches("[data-export]")) {
    document.getElementById("exported-path").textContent = detail.path;
    document.getElementById("exported-text").textContent = JSON.stringify(detail.credentials, null, 1);
    show("exported");
  } else if (target.matches("[data-check]")) {
    const text = detail.refreshed ? `${detail.reason}. The login was refreshed.` : detail.reason;
    toast(text, detail.validity === "valid" ? "ok" : "attention");
  } else if (target.matches("[data-password]")) {
    const count = detail.signInsEnded;
    const others = count === 1 ? "1 other browser was signed out" : `${count} other browsers were signed out`;
    toast(count ? `Password changed; ${others}.` : "Password changed.");
  }
});
