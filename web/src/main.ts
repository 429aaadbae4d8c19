// Wires the state machine to the page, the terminal and the socket.

import "@xterm/xterm/css/xterm.css";
import "./style.css";
import { Connection } from "./connection.ts";
import { fromFragment, load, save } from "./keep.ts";
import type { Key } from "./keys.ts";
import { type Effect, type Event, initial, type Model, step } from "./machine.ts";
import { nonceStyles } from "./nonce.ts";
import { authenticate, resize } from "./protocol.ts";
import { Screen } from "./screen.ts";
import { followViewport } from "./viewport.ts";
import { words } from "./words.ts";

function find<T extends HTMLElement>(id: string): T {
  const element = document.getElementById(id);
  if (element === null) throw new Error(`the page has no ${id}`);
  return element as T;
}

const page = {
  root: document.documentElement,
  name: find("name"),
  state: find("state"),
  said: find("said"),
  terminal: find("terminal"),
  keys: find("keys"),
  control: find<HTMLButtonElement>("control"),
  paste: find<HTMLButtonElement>("paste"),
  cover: find("cover"),
  card: find<HTMLFormElement>("card"),
  title: find("title"),
  text: find("text"),
  field: find("field"),
  token: find<HTMLInputElement>("token"),
  button: find<HTMLButtonElement>("button"),
};

nonceStyles(document);
const id = location.pathname.split("/").pop() ?? "";
let model: Model = initial;

const screen = new Screen(page.terminal, {
  typed: (data) => model.state.at === "connected" && connection.type(data),
  bytes: (bytes) => model.state.at === "connected" && connection.send(bytes),
  resized: (rows, cols) => model.state.at === "connected" && connection.say(resize(rows, cols)),
  overrun: () => happened({ type: "overrun" }),
});

const connection = new Connection(
  `${location.origin.replace(/^http/, "ws")}${location.pathname}/ws`,
  happened,
  (bytes) => screen.show(bytes),
);

function happened(event: Event): void {
  const [next, effects] = step(model, event);
  const before = model;
  model = next;
  for (const effect of effects) perform(effect);
  if (next.state !== before.state) draw();
}

function perform(effect: Effect): void {
  switch (effect.do) {
    case "open":
      return connection.open();
    case "authenticate":
      return connection.say(authenticate(model.token ?? "", model.session));
    case "close":
      return connection.close();
    case "tick":
      setTimeout(() => happened({ type: "tick" }), 1000);
      return;
    case "drain":
      return screen.whenShown(() => happened({ type: "drained" }));
    case "clear":
      return screen.clear();
    case "notice":
      return screen.notice(effect.text);
    case "begin":
      connection.say(resize(screen.rows, screen.cols));
      return;
    case "keep":
      return save(
        sessionStorage,
        id,
        model.token === null ? null : { token: model.token, session: model.session },
      );
  }
}

function draw(): void {
  const { tone, label, said, card } = words(model);
  page.root.dataset["tone"] = tone;
  page.root.dataset["state"] = model.state.at;
  page.state.textContent = label;
  // Only what is new is read out.
  if (page.said.textContent !== said) page.said.textContent = said;
  if (model.sandbox !== null) {
    page.name.textContent = model.sandbox;
    document.title = `${model.sandbox} · bhatti`;
  }
  page.cover.hidden = card === null;
  page.terminal.inert = card !== null;
  page.keys.inert = model.state.at !== "connected";
  if (card === null) {
    if (model.state.at === "connected") screen.focus();
    return;
  }
  page.title.textContent = card.title;
  page.text.textContent = card.text;
  page.field.hidden = !card.asks;
  page.token.value = "";
  page.button.textContent = card.button?.label ?? "Connect";
  (card.asks ? page.token : page.button).focus();
}

page.card.addEventListener("submit", (submitted) => {
  submitted.preventDefault();
  const { card } = words(model);
  if (card?.button) return happened(card.button.event);
  const token = page.token.value.trim();
  // People paste what they were sent: a whole link does as well.
  const inLink = /[#&]token=([^&\s]+)/.exec(token)?.[1];
  if (token !== "") happened({ type: "token", token: inLink ?? token });
});

// A key of the row must not take the focus: the keyboard of a phone would go away.
page.keys.addEventListener("pointerdown", (pressed) => pressed.preventDefault());
page.keys.addEventListener("click", (clicked) => {
  const button = (clicked.target as Element).closest("button");
  if (button === null) return;
  const key = button.dataset["key"];
  if (button === page.control) screen.holdControl(!screen.control);
  else if (button === page.paste) void screen.paste();
  else if (key !== undefined) screen.press(key as Key);
  screen.focus();
});
screen.onControl = (held) => page.control.setAttribute("aria-pressed", String(held));
page.paste.hidden = navigator.clipboard?.readText === undefined;

followViewport(page.root, () => screen.fit());
addEventListener("online", () => {
  const { state } = model;
  if (state.at === "waiting" || (state.at === "over" && state.why === "lost")) {
    happened({ type: "retry" });
  }
});
// A link with another token, opened in a tab that is here already.
addEventListener("hashchange", () => {
  const token = fromFragment(location, history);
  if (token !== null) happened({ type: "token", token });
});

const kept = load(sessionStorage, id);
const token = fromFragment(location, history) ?? kept?.token ?? null;
// Only a reload goes on with the shell: a copy of the tab would take it from the original.
const [navigation] = performance.getEntriesByType("navigation") as PerformanceNavigationTiming[];
if (navigation?.type === "reload" && kept?.token === token && kept !== null) {
  model = { ...model, session: kept.session };
}
if (token === null) draw();
else happened({ type: "token", token });
