// The doors: showing the password, and an invitation's code from the address.
// The code comes after `#`, which browsers send to no server, so no log has it.
for (const button of document.querySelectorAll("[data-reveal]")) {
  const input = document.getElementById(button.dataset.reveal);
  button.addEventListener("click", () => {
    const shown = input.type === "text";
    input.type = shown ? "password" : "text";
    button.setAttribute("aria-pressed", String(!shown));
    button.setAttribute("aria-label", shown ? "Show password" : "Hide password");
    input.focus();
  });
}

const told = new URLSearchParams(location.hash.slice(1));
for (const name of ["invitation", "email"]) {
  const input = document.querySelector(`input[name=${name}]`);
  if (input && told.has(name)) input.value = told.get(name);
}
if (told.has("invitation")) {
  history.replaceState(null, "", location.pathname + location.search);
  const next = document.querySelector("form input:not([value]):invalid, form input[name=email]");
  next?.focus();
}

const single = document.querySelector("a[data-single-sign-on]");
single?.addEventListener("click", () => {
  const code = document.querySelector("input[name=invitation]")?.value.trim();
  if (code) single.href = `${single.pathname}?invitation=${encodeURIComponent(code)}`;
});
