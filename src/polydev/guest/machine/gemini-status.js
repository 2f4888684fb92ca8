#!/usr/bin/env node
// Whether Gemini CLI counts itself logged in: exit code 0 or 1, in the CLI machine. It has no
// command that tells, so this opens an ACP session, for which the CLI uses its login with its
// provider, and asks no model. Installed as /usr/lib/polydev/gemini-status.
"use strict";
const { spawn } = require("node:child_process");
const readline = require("node:readline");

const LIMIT_MS = 165_000;
const WORDS = 300;

const cli = spawn("gemini", ["--acp"], {
  // Without the last, it would begin a login where its own has ended.
  env: { GEMINI_CLI_NO_RELAUNCH: "true", ...process.env, NO_BROWSER: "true" },
  stdio: ["pipe", "pipe", "ignore"],
});
const limit = setTimeout(() => end(1, "it did not answer in time"), LIMIT_MS);

function end(code, words) {
  if (process.exitCode !== undefined) return;
  clearTimeout(limit);
  const text = String(words).replace(/[^\x20-\x7e]+/g, " ").slice(0, WORDS);
  process.stdout.write(`${code === 0 ? "Logged in" : `Not logged in: ${text}`}\n`);
  cli.kill("SIGKILL");
  process.exitCode = code;
}

function ask(id, method, params) {
  cli.stdin.write(`${JSON.stringify({ jsonrpc: "2.0", id, method, params })}\n`);
}

cli.on("error", (error) => end(1, error.message));
cli.on("exit", (code) => end(1, `it ended with exit code ${code}`));
cli.stdin.on("error", () => {}); // it ended: `exit` tells
readline.createInterface({ input: cli.stdout }).on("line", (line) => {
  let message;
  try {
    message = JSON.parse(line);
  } catch {
    // It prints words where it would begin a login, and waits for a code.
    if (/authori[sz]ation code|visit the following URL/i.test(line)) end(1, "it asks for a login");
    return;
  }
  if (message?.id === 1 && message.result) {
    ask(2, "session/new", { cwd: "/", mcpServers: [] });
  } else if (message?.id === 2 && message.result) {
    end(0, "");
  } else if (message?.error) {
    end(1, message.error.message);
  }
});
ask(1, "initialize", { protocolVersion: 1, clientCapabilities: {} });
