/**
 * A chat as its events tell it: turns, and what happened in each, in order.
 *
 * A turn's events come in the order of their ids, maybe more than once; turns from before may come
 * after later ones. Pieces of a text that were stored are told as one, with the last one's id: so
 * within a turn, what is not beyond the last id is known already, whether or not that very id was
 * seen. Neighbouring pieces are one entry; what is told again of a tool call, the plan or a
 * permission changes the entry that is there. Knows no DOM.
 */

/** A turn's events have ids from `turn * IDS_PER_TURN` on. */
export const IDS_PER_TURN = 1_000_000;

export class Transcript {
  constructor() {
    this.turns = new Map(); // number -> Turn, in any order
    this.lastId = 0;
    this.title = null; // what the newest event says that the chat is called
    this.titleId = 0;
  }

  /** Take an event in. The turn that it changed, or null if it was known already. */
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

  /** Whether the last turn has not ended. */
  get running() {
    return Boolean(this.last?.prompt) && this.last.ended === null;
  }

  /** The permission that is waited for, or null. */
  get asked() {
    return this.last?.entries.find((entry) => entry.kind === "permission" && entry.open) ?? null;
  }
}

/** One question and what came of it. */
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

  /** Fold an event in. False if it is known already. */
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
    for (const name of TOLD_OF_TOOLS) if (event[name] != null) tool[name] = event[name];
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
    const asked = this.permissions.get(event.requestId);
    if (asked) Object.assign(asked, { open: false, chosen: event.optionId ?? null });
  }

  end(event) {
    this.ended = { reason: event.reason, error: event.error ?? null, at: event.at };
    for (const asked of this.permissions.values()) asked.open = false;
    for (const entry of this.entries) entry.done = true;
  }

  /** A new entry; nothing more is added to the text of the one before it. */
  add(kind, event, told) {
    if (this.entries.length) this.entries.at(-1).done = true;
    const entry = { kind, key: event.id, at: event.at, done: false, ...told };
    this.entries.push(entry);
    return entry;
  }
}

const TOLD_OF_TOOLS = ["toolCallId", "title", "toolKind", "status", "locations", "content"];
const NEW_TOOL = { title: "", toolKind: "other", status: "pending", locations: [], content: [] };

function listOf(value) {
  return Array.isArray(value) ? value : [];
}
