#!/usr/bin/env node
// Check whether Gemini CLI is logged in: exit code 0 or 1. The CLI has no status command, so this
// opens an ACP session: that uses the login, but calls no model. The golden images install this
// file as /usr/lib/polydev/gemini-status.
"use strict";
const { spawn } = require("node:child_process");
const readline = require("node:readline");

const LIMIT_MS = 165_000;
const MAX_MESSAGE = 300;

const cli = spawn("gemini", ["--acp"], {
  // NO_BROWSER keeps it from starting a login when its own has expired.
  env: { GEMINI_CLI_NO_RELAUNCH: "true", ...process.env, NO_BROWSER: "true" },
  stdio: ["pipe", "pipe", "ignore"],
});
const limit = setTimeout(() => end(1, "it did not answer in time"), LIMIT_MS);

function end(code, message) {
  if (process.exitCode !== undefined) return;
  clearTimeout(limit);
  const text = String(message).replace(/[^\x20-\x7e]+/g, " ").slice(0, MAX_MESSAGE);
  process.stdout.write(`${code === 0 ? "Logged in" : `Not logged in: ${text}`}\n`);
  cli.kill("SIGKILL");
  process.exitCode = code;
}

function request(id, method, params) {
  cli.stdin.write(`${JSON.stringify({ jsonrpc: "2.0", id, method, params })}\n`);
}

cli.on("error", (error) => end(1, error.message));
cli.on("exit", (code) => end(1, `it ended with exit code ${code}`));
cli.stdin.on("error", () => {}); // it has ended: `exit` follows
readline.createInterface({ input: cli.stdout }).on("line", (line) => {
  let message;
  try {
    message = JSON.parse(line);
  } catch {
    // This text means that it starts a login and waits for a code.
    if (/authori[sz]ation code|visit the following URL/i.test(line)) end(1, "it asks for a login");
    return;
  }
  if (message?.id === 1 && message.result) {
    request(2, "session/new", { cwd: "/", mcpServers: [] });
  } else if (message?.id === 2 && message.result) {
    end(0, "");
  } else if (message?.error) {
    end(1, message.error.message);
  }
});
request(1, "initialize", { protocolVersion: 1, clientCapabilities: {} });
