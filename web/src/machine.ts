// The life of the page, as a function from what it was and what happened to what it is and what
// is to be done. No DOM, no clock, no socket.
//
//   asking ──▶ connecting ──▶ starting ──▶ connected ──▶ over
//                  ▲    ╲         │            │           │
//                  └── waiting ◀──┴────────────┘     (a button) ──▶ connecting
//
// Promises, each with a test:
// - A lost connection is tried again three times, after 1, 2 and 4 s; then the user is asked.
// - After `unauthorized` the token is forgotten, and nothing is tried again by itself.
// - A sandbox that was put to sleep is not woken before the user says so.
// - A connection that comes back goes on with the same shell, or says that it is another one.

import type { ServerMessage } from "./protocol.ts";

/** Why nothing happens any more until the user says so. */
export type End =
  /** The shell has exited. */
  | "exited"
  /** Another window goes on with the shell. */
  | "taken"
  /** Somebody has put the sandbox to sleep. */
  | "asleep"
  /** The token opens nothing, or no longer. */
  | "unauthorized"
  /** Others use the sandbox's web shells already, as many as may. */
  | "crowded"
  /** The sandbox did not wake. */
  | "unavailable"
  /** It woke, and there is no shell in it. */
  | "no-shell"
  /** The connection was lost and did not come back. */
  | "lost"
  /** The daemon said something this page does not know. */
  | "failed";

export type State =
  | { at: "asking" }
  | { at: "connecting" }
  | { at: "starting"; waking: boolean }
  | { at: "connected" }
  | { at: "waiting"; seconds: number }
  | { at: "over"; why: End };

export interface Model {
  readonly state: State;
  /** Null once it turned out to be no good. */
  readonly token: string | null;
  /** The sandbox's name, once the daemon told it. */
  readonly sandbox: string | null;
  /** The shell to go on with; empty for a new one. */
  readonly session: string;
  /** How often it was tried since there was a connection. */
  readonly tries: number;
}

export type Event =
  | { type: "token"; token: string }
  | { type: "opened" }
  | { type: "message"; message: ServerMessage }
  | { type: "closed"; code: number }
  /** One second of waiting is over. */
  | { type: "tick" }
  /** The user wants another try, or the network is back. */
  | { type: "retry" }
  /** The user wants a new shell. */
  | { type: "fresh" }
  /** Output comes faster than it can be shown. */
  | { type: "overrun" }
  /** All that came is shown. */
  | { type: "drained" };

export type Effect =
  | { do: "open" }
  | { do: "authenticate" }
  | { do: "close" }
  /** Come back with `drained`. */
  | { do: "drain" }
  /** Come back with `tick` in one second. */
  | { do: "tick" }
  /** Forget what is on the screen: it is about to be sent again. */
  | { do: "clear" }
  /** A line of our own in the terminal. */
  | { do: "notice"; text: string }
  /** Tell the shell how large the window is, and let the user type. */
  | { do: "begin" }
  /** Keep token and shell for a reload of the page, or forget them. */
  | { do: "keep" };

/** How long to wait before each new try, in seconds. */
const DELAYS = [1, 2, 4];

/**
 * What a WebSocket closes with when all is said, when another client took the shell, and when the
 * sandbox was put to sleep.
 */
const NORMAL = 1000;
const TAKEN = 4001;
const ASLEEP = 4002;

/** The page before anything happened. */
export const initial: Model = {
  state: { at: "asking" },
  token: null,
  sandbox: null,
  session: "",
  tries: 0,
};

type Step = [Model, Effect[]];

export function step(model: Model, event: Event): Step {
  switch (event.type) {
    case "token":
      return connect({ ...model, token: event.token, tries: 0 }, [{ do: "keep" }]);
    case "opened":
      return [model, model.state.at === "connecting" ? [{ do: "authenticate" }] : []];
    case "message":
      return heard(model, event.message);
    case "closed":
      return closed(model, event.code);
    case "tick":
      return tick(model);
    case "retry":
      return retry(model);
    case "fresh":
      return connect({ ...model, session: "", tries: 0 }, [{ do: "keep" }]);
    case "overrun":
      // The shell keeps the last of what was said; going on with it skips the rest.
      return model.state.at === "connected"
        ? [{ ...model, state: { at: "connecting" } }, [{ do: "close" }, { do: "drain" }]]
        : [model, []];
    case "drained":
      return [model, model.state.at === "connecting" ? [{ do: "open" }] : []];
  }
}

function connect(model: Model, before: Effect[] = []): Step {
  if (model.token === null) return [{ ...model, state: { at: "asking" } }, before];
  return [{ ...model, state: { at: "connecting" } }, [...before, { do: "open" }]];
}

function heard(model: Model, message: ServerMessage): Step {
  // What was under way when the page turned away from this connection.
  if (!["connecting", "starting", "connected"].includes(model.state.at)) return [model, []];
  switch (message.type) {
    case "connected": {
      const state: State = { at: "starting", waking: message.status !== "running" };
      return [{ ...model, sandbox: message.sandbox, state }, []];
    }
    case "session":
      return began(model, message.session);
    case "error":
      return ended(model, reason(message.error));
  }
}

function began(model: Model, session: string): Step {
  const effects: Effect[] = [];
  if (model.session === session) effects.push({ do: "clear" });
  else if (model.session !== "") {
    effects.push({ do: "notice", text: "The former shell has ended. This is a new one." });
  }
  effects.push({ do: "begin" }, { do: "keep" });
  return [{ ...model, session, tries: 0, state: { at: "connected" } }, effects];
}

function closed(model: Model, code: number): Step {
  switch (model.state.at) {
    case "asking":
    case "waiting":
    case "over":
      return [model, []];
    case "connected":
      if (code === NORMAL) return ended({ ...model, session: "" }, "exited");
      if (code === TAKEN) return ended(model, "taken");
      if (code === ASLEEP) return ended(model, "asleep");
      break;
    case "connecting":
    case "starting":
      break;
  }
  const seconds = DELAYS[model.tries];
  if (seconds === undefined) return ended(model, "lost");
  const state: State = { at: "waiting", seconds };
  return [{ ...model, tries: model.tries + 1, state }, [{ do: "tick" }]];
}

function ended(model: Model, why: End): Step {
  const token = why === "unauthorized" ? null : model.token;
  const session = why === "unauthorized" ? "" : model.session;
  const state: State = { at: "over", why };
  return [{ ...model, token, session, state }, [{ do: "close" }, { do: "keep" }]];
}

function tick(model: Model): Step {
  if (model.state.at !== "waiting") return [model, []];
  const seconds = model.state.seconds - 1;
  if (seconds <= 0) return connect(model);
  return [{ ...model, state: { at: "waiting", seconds } }, [{ do: "tick" }]];
}

function retry(model: Model): Step {
  switch (model.state.at) {
    case "waiting":
      return connect(model);
    case "over":
      return connect({ ...model, tries: 0 });
    default:
      return [model, []];
  }
}

/** The daemon's words for why it ends a connection. */
function reason(error: string): End {
  switch (error) {
    case "unauthorized":
      return "unauthorized";
    case "too many sessions":
      return "crowded";
    case "sandbox unavailable":
      return "unavailable";
    case "shell unavailable":
      return "no-shell";
    default:
      return "failed";
  }
}
