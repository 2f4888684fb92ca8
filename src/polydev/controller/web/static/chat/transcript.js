/**
 * Model of a chat, built from its events: turns, and the entries of each in order. Knows no DOM.
 *
 * A turn's events arrive in the order of their ids, possibly more than once; earlier turns may arrive
 * after later ones. Stored pieces of a text arrive joined, with the last piece's id: so within a turn
 * any id up to the last received one is known. Adjacent pieces of text form one entry; updates of a
 * tool call, the plan or a permission request change the existing entry.
 */

/** The ids of a turn's events start at `turn * IDS_PER_TURN`. */
export const IDS_PER_TURN = 1_000_000;

export class Transcript {
  constructor() {
    this.turns = new Map(); // number -> Turn, in any order
    this.lastId = 0;
    this.title = null; // of the newest title event
    this.titleId = 0;
  }

  /** Apply an event; returns the turn that it changed, or null if it was known. */
  apply(event) {
    if (!Number.isSafeInteger(event?.id) || event.id <= 0) return null;
    const number = Math.floor(event.id / IDS_PER_TURN);
    const turn = this.turns.get(number) ?? new Turn(number);
    if (!turn.take(event)) return null;
    this.turns.set(number, turn);
    this.lastId = Math.max(this.lastId, event.id);
    if (event.kind === "title" && event.id > this.titleId) {
      this.title = event.title;
      this.titleId = event.id;
    }
    return turn;
  }

  /** The turn with the highest number, or null. */
  get last() {
    return this.turns.size ? this.turns.get(Math.max(...this.turns.keys())) : null;
  }

  /** True while the last turn has not ended. */
  get running() {
    return Boolean(this.last?.prompt) && this.last.ended === null;
  }

  /** The open permission request, or null. */
  get asked() {
    return this.last?.entries.find((entry) => entry.kind === "permission" && entry.open) ?? null;
  }
}

/** A message of the user and everything that followed. */
export class Turn {
  constructor(number) {
    this.number = number;
    this.lastId = 0;
    this.prompt = null; // {text, at}
    this.entries = [];
    this.ended = null; // {reason, error, at}
    this.tools = new Map(); // toolCallId -> entry
    this.permissions = new Map(); // requestId -> entry
    this.plan = null;
  }

  /** Apply an event; returns false if it was known. */
  take(event) {
    if (event.id <= this.lastId) return false;
    this.lastId = event.id;
    this.fold(event);
    return true;
  }

  fold(event) {
    const folds = {
      user: () => (this.prompt = { text: String(event.text ?? ""), at: event.at }),
      text: () => this.addText("answer", event),
      thought: () => this.addText("thought", event),
      tool: () => this.addTool(event),
      plan: () => this.setPlan(event),
      permission: () => this.addPermission(event),
      permission_answered: () => this.answer(event),
      notice: () => this.add("notice", event, { text: String(event.text ?? ""), code: event.code ?? "" }),
      turn_ended: () => this.end(event),
    };
    if (Object.hasOwn(folds, event.kind)) folds[event.kind]();
  }

  addText(kind, event) {
    const text = String(event.text ?? "");
    const last = this.entries.at(-1);
    if (last?.kind === kind) last.text += text;
    else this.add(kind, event, { text });
  }

  addTool(event) {
    const known = this.tools.get(event.toolCallId);
    const tool = known ?? this.add("tool", event, { ...NEW_TOOL });
    for (const name of TOOL_FIELDS) if (event[name] != null) tool[name] = event[name];
    tool.version = event.id;
    this.tools.set(event.toolCallId, tool);
  }

  setPlan(event) {
    this.plan ??= this.add("plan", event, {});
    Object.assign(this.plan, { steps: listOf(event.entries), version: event.id });
  }

  addPermission(event) {
    if (this.permissions.has(event.requestId)) return;
    const { requestId, toolCallId, title, toolKind } = event;
    const entry = this.add("permission", event, { requestId, toolCallId, title, toolKind });
    const lists = { options: listOf(event.options), content: listOf(event.content) };
    Object.assign(entry, lists, { open: true, chosen: null });
    this.permissions.set(requestId, entry);
  }

  answer(event) {
    const request = this.permissions.get(event.requestId);
    if (request) Object.assign(request, { open: false, chosen: event.optionId ?? null });
  }

  end(event) {
    this.ended = { reason: event.reason, error: event.error ?? null, at: event.at };
    for (const request of this.permissions.values()) request.open = false;
    for (const entry of this.entries) entry.done = true;
  }

  /** Add an entry; the previous one is complete. */
  add(kind, event, fields) {
    if (this.entries.length) this.entries.at(-1).done = true;
    const entry = { kind, key: event.id, at: event.at, done: false, ...fields };
    this.entries.push(entry);
    return entry;
  }
}

const TOOL_FIELDS = ["toolCallId", "title", "toolKind", "status", "locations", "content"];
const NEW_TOOL = { title: "", toolKind: "other", status: "pending", locations: [], content: [] };

function listOf(value) {
  return Array.isArray(value) ? value : [];
}
