// Administration: reasons for actions, new invitations, progress of a key rotation.

import { api, Problem } from "../shared/api.js";
import { refresh } from "../shared/fragments.js";
import { toast } from "../shared/ui.js";

const POLL_MS = 1000;

const reasonDialog = document.getElementById("reason-dialog");
const refreshSection = () => refresh(document.getElementById("section"));

document.addEventListener("click", ({ target }) => {
  const button = target.closest("[data-ask-reason]");
  if (!button) return;
  const form = reasonDialog.querySelector("form");
  form.dataset.api = button.dataset.askReason;
  document.getElementById("reason-title").textContent = button.dataset.title;
  document.getElementById("reason-text").textContent = button.dataset.text;
  document.getElementById("reason-button").textContent = button.dataset.button;
  for (const slot of reasonDialog.querySelectorAll("[data-problem]")) slot.hidden = true;
  reasonDialog.showModal();
});

document.addEventListener("change", ({ target }) => {
  if (target.matches("[data-auto-submit]")) target.form.requestSubmit();
});

// The API rejects an empty action: leave the field out.
document.addEventListener("formdata", ({ formData }) => {
  if (formData.get("action") === "") formData.delete("action");
});

document.addEventListener("polydev:done", ({ target, detail }) => {
  if (target.closest("#reason-dialog")) {
    reasonDialog.close();
    toast("Done");
    refreshSection();
  } else if (target.closest("#invite")) {
    target.closest("dialog").close();
    showInvitation(detail);
  } else if (target.matches("[data-key-rotation]")) {
    followRotation(detail);
  }
});

function showInvitation({ code, email }) {
  document.getElementById("invitation-code").textContent = code;
  const fields = new URLSearchParams({ invitation: code });
  if (email) fields.set("email", email);
  // After `#`, so that the code appears in no server's log.
  document.getElementById("invitation-link").textContent = `${location.origin}/sign-up#${fields}`;
  document.getElementById("invitation-created").showModal();
}

async function followRotation(rotation) {
  const progress = document.getElementById("rotation");
  try {
    while (!rotation.over) {
      progress.textContent = `Re-encrypting: ${rotation.left} left…`;
      await new Promise((resolve) => setTimeout(resolve, POLL_MS));
      rotation = await api("GET", `/api/admin/keys/rotate/${rotation.rotationId}`);
    }
    if (rotation.left) {
      toast(`${rotation.left} secrets could not be decrypted. See the controller's log.`, "attention");
    } else toast("All secrets use the current key.");
    refreshSection();
  } catch (problem) {
    if (!(problem instanceof Problem)) throw problem;
    progress.textContent = problem.message;
  }
}
