// Administration: asking for a reason, invitations that are shown once, how far a rotation is.
import { api, Problem, say } from "./app.js";

const why = document.getElementById("why");

document.addEventListener("click", ({ target }) => {
  const button = target.closest("[data-why]");
  if (!button) return;
  const form = why.querySelector("form");
  form.dataset.api = button.dataset.why;
  document.getElementById("why-title").textContent = button.dataset.title;
  document.getElementById("why-text").textContent = button.dataset.text;
  document.getElementById("why-button").textContent = button.dataset.button;
  for (const slot of why.querySelectorAll("[data-problem]")) slot.hidden = true;
  why.showModal();
});

document.addEventListener("change", ({ target }) => {
  if (target.matches("[data-submits]")) target.form.requestSubmit();
});

// A list that goes without a word would read as "no such action": leave empty fields out.
document.addEventListener("formdata", ({ formData }) => {
  if (formData.get("action") === "") formData.delete("action");
});

document.addEventListener("polydev:done", ({ target, detail }) => {
  if (target.closest("#why")) {
    why.close();
    say("Done");
    window.htmx.trigger("#part", "refresh");
  } else if (target.closest("#invite")) {
    target.closest("dialog").close();
    document.getElementById("invited-code").textContent = detail.code;
    const told = new URLSearchParams({ invitation: detail.code });
    if (detail.email) told.set("email", detail.email);
    // After `#`, so that no server's log has the code.
    document.getElementById("invited-link").textContent = `${location.origin}/sign-up#${told}`;
    document.getElementById("invited").showModal();
  } else if (target.matches("[data-rotates]")) {
    follow(detail);
  }
});

async function follow(rotation) {
  const words = document.getElementById("rotation");
  try {
    while (!rotation.over) {
      words.textContent = `Re-encrypting: ${rotation.left} left…`;
      await new Promise((resolve) => setTimeout(resolve, 1000));
      rotation = await api("GET", `/api/admin/keys/rotate/${rotation.rotationId}`);
    }
    say(rotation.left ? `${rotation.left} secrets could not be decrypted. See the controller's log.` : "All secrets use the current key.", rotation.left ? "attention" : "ok");
    window.htmx.trigger("#part", "refresh");
  } catch (problem) {
    if (!(problem instanceof Problem)) throw problem;
    words.textContent = problem.message;
  }
}

for (const dialog of document.querySelectorAll("dialog:has([data-secret])")) {
  dialog.addEventListener("close", () => {
    for (const secret of dialog.querySelectorAll("[data-secret]")) secret.textContent = "";
  });
}
