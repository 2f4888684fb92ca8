// Client of Polydev's API.

import { redirect } from "./navigation.js";

export const meta = (name) => document.querySelector(`meta[name="${name}"]`)?.content ?? "";

/** A problem document (RFC 9457) that the API returned instead of a result. */
export class Problem extends Error {
  constructor(status, { detail, hint, code } = {}) {
    super(detail || "Polydev sent an invalid response.");
    this.status = status;
    this.code = code ?? "";
    this.hint = hint ?? "";
  }
}

/** Send a request; returns the response's JSON, or null if it has none. Throws Problem. */
export async function api(method, path, body) {
  const headers = { Accept: "application/json", "X-CSRF-Token": meta("csrf-token") };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, {
      method,
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      cache: "no-store",
    });
  } catch {
    throw new Problem(0, {
      code: "unreachable",
      detail: "Polydev is not responding.",
      hint: "Check your connection, then try again.",
    });
  }
  if (response.ok) return response.status === 204 ? null : response.json();
  const problem = await response.json().catch(() => ({}));
  if (response.status === 401 && meta("user-id")) goToSignIn();
  throw new Problem(response.status, problem);
}

/** Leave for the sign-in page, which leads back here. */
export function goToSignIn() {
  redirect(`/sign-in?next=${encodeURIComponent(location.pathname + location.search)}`);
}
