// What the page says in each state: pure, so that it can be tested and read in one place.

import type { End, Event, Model } from "./machine.ts";

/** How the state looks at a glance. */
export type Tone = "calm" | "busy" | "good" | "bad";

export interface Words {
  tone: Tone;
  /** In the bar. */
  label: string;
  /** For screen readers; changes less often than the label. */
  said: string;
  /** In the middle of the page, in place of the terminal. */
  card: Card | null;
}

export interface Card {
  title: string;
  text: string;
  /** A field for a token. */
  asks: boolean;
  button: { label: string; event: Event } | null;
}

export function words(model: Model): Words {
  const { state } = model;
  const name = model.sandbox ?? "the sandbox";
  switch (state.at) {
    case "asking":
      return over("calm", "Not connected", {
        title: "Open a shell",
        text: "Paste the token that came with the link. “bhatti share” makes a new one.",
        asks: true,
        button: null,
      });
    case "connecting":
      return plain("busy", model.tries > 0 ? "Reconnecting…" : "Connecting…");
    case "starting":
      return plain("busy", state.waking ? `Waking ${name}…` : "Starting a shell…");
    case "connected":
      return plain("good", "Connected");
    case "waiting":
      return {
        tone: "busy",
        label: `Connection lost. Trying again in ${state.seconds} s`,
        said: "Connection lost. Reconnecting.",
        card: null,
      };
    case "over":
      return ending(state.why, name, model.session !== "");
  }
}

function plain(tone: Tone, label: string): Words {
  return { tone, label, said: label, card: null };
}

function over(tone: Tone, label: string, card: Card): Words {
  return { tone, label, said: `${label}. ${card.title}. ${card.text}`, card };
}

/** `began`: there is a shell that this page knows. */
function ending(why: End, name: string, began: boolean): Words {
  const again = { label: "Try again", event: { type: "retry" } as const };
  switch (why) {
    case "exited":
      return over("calm", "Shell ended", {
        title: "The shell has ended",
        text: `${capital(name)} and its files are still there.`,
        asks: false,
        button: { label: "Start a new shell", event: { type: "fresh" } },
      });
    case "taken":
      return over("calm", "Open elsewhere", {
        title: "The shell was opened elsewhere",
        text: "Another window has it now. What runs in it goes on.",
        asks: false,
        button: { label: "Take it back", event: { type: "retry" } },
      });
    case "asleep":
      return over("calm", "Asleep", {
        title: `${capital(name)} was put to sleep`,
        text: "What runs in the shell goes on when it wakes.",
        asks: false,
        button: { label: "Wake it", event: { type: "retry" } },
      });
    case "unauthorized":
      return over("bad", "No access", {
        title: "This link does not work",
        text: "It was revoked or replaced, or a part of it is missing. A new token works here too.",
        asks: true,
        button: null,
      });
    case "crowded":
      return over("bad", "Too many shells", {
        title: "Too many web shells are open",
        text: `${capital(name)} has as many as it may. Close one elsewhere and try again.`,
        asks: false,
        button: again,
      });
    case "unavailable":
      return over("bad", "Not available", {
        title: `${capital(name)} did not wake`,
        text: "Whoever runs the server finds the reason in its log.",
        asks: false,
        button: again,
      });
    case "no-shell":
      return over("bad", "No shell", {
        title: "No shell could be started",
        text: `${capital(name)} is awake, but could not start one. It may have too many sessions.`,
        asks: false,
        button: again,
      });
    case "lost":
      return over("bad", "Disconnected", {
        title: "The connection was lost",
        text: began
          ? "The server could not be reached. What runs in the shell goes on."
          : "The server could not be reached.",
        asks: false,
        button: again,
      });
    case "failed":
      return over("bad", "Disconnected", {
        title: "The server ended the connection",
        text: "It gave no reason that this page knows.",
        asks: false,
        button: again,
      });
  }
}

function capital(text: string): string {
  return text === "the sandbox" ? "The sandbox" : text;
}
