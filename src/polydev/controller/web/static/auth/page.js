// Sign-in and sign-up: password visibility, and the invitation code from the address.
// The code comes after `#`, which browsers send to no server.

for (const button of document.querySelectorAll("[data-reveal]")) {
  const input = document.getElementById(button.dataset.reveal);
  button.addEventListener("click", () => {
    const wasVisible = input.type === "text";
    input.type = wasVisible ? "password" : "text";
    button.setAttribute("aria-pressed", String(!wasVisible));
    button.setAttribute("aria-label", wasVisible ? "Show password" : "Hide password");
    input.focus();
  });
}

const fields = new URLSearchParams(location.hash.slice(1));
for (const name of ["invitation", "email"]) {
  const input = document.querySelector(`input[name=${name}]`);
  if (input && fields.has(name)) input.value = fields.get(name);
}
if (fields.has("invitation")) {
  history.replaceState(null, "", location.pathname + location.search);
  document.querySelector("form input:not([value]):invalid, form input[name=email]")?.focus();
}

const singleSignOn = document.querySelector("a[data-single-sign-on]");
singleSignOn?.addEventListener("click", () => {
  const code = document.querySelector("input[name=invitation]")?.value.trim();
  if (code) singleSignOn.href = `${singleSignOn.pathname}?invitation=${encodeURIComponent(code)}`;
});
