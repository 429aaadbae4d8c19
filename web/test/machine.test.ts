// The life of the page, one story a test.

import assert from "node:assert/strict";
import { test } from "node:test";
import { type Effect, type Event, initial, type Model, step } from "../src/machine.ts";

/** What became of the page after `events`, and what each of them had done. */
function after(events: Event[], from: Model = initial): { model: Model; done: string[][] } {
  const done: string[][] = [];
  let model = from;
  for (const event of events) {
    let effects: Effect[];
    [model, effects] = step(model, event);
    done.push(effects.map((effect) => effect.do));
  }
  return { model, done };
}

const token: Event = { type: "token", token: "t" };
const opened: Event = { type: "opened" };
const tick: Event = { type: "tick" };
const dropped: Event = { type: "closed", code: 1006 };
const exited: Event = { type: "closed", code: 1000 };
const welcome = (status: string): Event => ({
  type: "message",
  message: { type: "connected", sandbox: "dev", status },
});
const session = (id: string): Event => ({
  type: "message",
  message: { type: "session", session: id },
});
const error = (text: string): Event => ({ type: "message", message: { type: "error", error: text } });

const start = [token, opened, welcome("running"), session("s1")];

test("a token leads to a shell", () => {
  const { model, done } = after(start);
  assert.deepEqual(done, [["keep", "open"], ["authenticate"], [], ["begin", "keep"]]);
  assert.deepEqual(model, {
    state: { at: "connected" },
    token: "t",
    sandbox: "dev",
    session: "s1",
    tries: 0,
  });
});

test("a sandbox that sleeps is said to wake", () => {
  const waking = (status: string) => after([token, opened, welcome(status)]).model.state;
  assert.deepEqual(waking("stopped"), { at: "starting", waking: true });
  assert.deepEqual(waking("running"), { at: "starting", waking: false });
});

test("a lost connection is tried again after 1, 2 and 4 seconds, and then no more", () => {
  let { model } = after(start);
  const waited: number[] = [];
  for (let i = 0; i < 3; i++) {
    let effects: Effect[];
    [model, effects] = step(model, dropped);
    assert.deepEqual(effects, [{ do: "tick" }]);
    let seconds = 0;
    while (model.state.at === "waiting") {
      assert.equal(model.state.seconds, 2 ** i - seconds);
      [model, effects] = step(model, tick);
      seconds += 1;
    }
    assert.deepEqual(effects, [{ do: "open" }], "the wait ends with a try");
    waited.push(seconds);
  }
  assert.deepEqual(waited, [1, 2, 4]);
  [model] = step(model, dropped);
  assert.deepEqual(model.state, { at: "over", why: "lost" });
  assert.equal(model.session, "s1", "the shell may still be there when the user tries again");
  assert.equal(after([{ type: "retry" }], model).model.state.at, "connecting");
});

test("a first connection that fails is tried again too", () => {
  const { model } = after([token, dropped]);
  assert.deepEqual(model.state, { at: "waiting", seconds: 1 });
});

test("a connection that was back has all its tries again", () => {
  const back = [dropped, tick, opened, welcome("running"), session("s1")];
  const { model } = after([...start, ...back, ...back, ...back, ...back, dropped]);
  assert.deepEqual(model.state, { at: "waiting", seconds: 1 });
});

test("a shell that is still there is shown again from the start", () => {
  const { model, done } = after([...start, dropped, tick, opened, welcome("running"), session("s1")]);
  assert.deepEqual(done.at(-1), ["clear", "begin", "keep"]);
  assert.equal(model.tries, 0);
});

test("another shell than before is said to be one", () => {
  const { done } = after([...start, dropped, tick, opened, welcome("running"), session("s2")]);
  assert.deepEqual(done.at(-1), ["notice", "begin", "keep"]);
});

test("a shell that exits is over, and the next is a new one", () => {
  const { model, done } = after([...start, exited]);
  assert.deepEqual(model.state, { at: "over", why: "exited" });
  assert.equal(model.session, "");
  assert.deepEqual(done.at(-1), ["close", "keep"]);
  const next = after([{ type: "fresh" }], model);
  assert.deepEqual(next.done, [["keep", "open"]]);
  assert.equal(next.model.state.at, "connecting");
});

test("a shell that another window took can be taken back", () => {
  const { model, done } = after([...start, { type: "closed", code: 4001 }]);
  assert.deepEqual(model.state, { at: "over", why: "taken" });
  assert.deepEqual(done.at(-1), ["close", "keep"]);
  const back = after([{ type: "retry" }, opened, welcome("running"), session("s1")], model);
  assert.deepEqual(back.done.at(-1), ["clear", "begin", "keep"], "the same shell");
});

test("a sandbox that was put to sleep stays asleep until the user wakes it", () => {
  const { model, done } = after([...start, { type: "closed", code: 4002 }, tick]);
  assert.deepEqual(model.state, { at: "over", why: "asleep" });
  assert.deepEqual(done.slice(-2), [["close", "keep"], []]);
  const back = after([{ type: "retry" }, opened, welcome("stopped"), session("s1")], model);
  assert.deepEqual(back.done.at(-1), ["clear", "begin", "keep"], "the same shell");
});

test("a clean end before there was a shell is none", () => {
  assert.equal(after([token, opened, exited]).model.state.at, "waiting");
});

test("after `unauthorized` the token is forgotten and nothing is tried", () => {
  for (const before of [[token, opened], start]) {
    const { model, done } = after([...before, error("unauthorized"), dropped, tick]);
    assert.deepEqual(model.state, { at: "over", why: "unauthorized" });
    assert.deepEqual([model.token, model.session], [null, ""]);
    assert.deepEqual(done.slice(before.length), [["close", "keep"], [], []]);
    assert.equal(after([{ type: "retry" }], model).model.state.at, "asking", "not without a token");
    assert.equal(after([token], model).model.state.at, "connecting", "but with a new one");
  }
});

test("each refusal has its own end, and can be tried again", () => {
  for (const [text, why] of [
    ["too many sessions", "crowded"],
    ["sandbox unavailable", "unavailable"],
    ["shell unavailable", "no-shell"],
    ["something new", "failed"],
  ] as const) {
    const { model } = after([token, opened, error(text), dropped]);
    assert.deepEqual(model.state, { at: "over", why });
    assert.equal(model.token, "t");
    assert.equal(after([{ type: "retry" }], model).model.state.at, "connecting");
  }
});

test("what arrives late changes nothing", () => {
  const { model } = after([...start, exited]);
  for (const late of [tick, opened, dropped, session("s9"), welcome("running"), error("unauthorized")]) {
    const [next, effects] = step(model, late);
    assert.deepEqual([next, effects], [model, []]);
  }
  assert.deepEqual(after([tick, { type: "retry" }]).model, initial);
});

test("a ticking clock does not open a second connection", () => {
  // The user was faster than the clock.
  const { done } = after([...start, dropped, { type: "retry" }, tick, tick]);
  assert.deepEqual(done.slice(-3), [["open"], [], []]);
});

test("too much output is skipped by attaching again", () => {
  const overrun: Event = { type: "overrun" };
  const drained: Event = { type: "drained" };
  const { model, done } = after([...start, overrun, overrun, drained, opened, welcome("running"), session("s1")]);
  assert.deepEqual(done.slice(4), [["close", "drain"], [], ["open"], ["authenticate"], [], ["clear", "begin", "keep"]]);
  assert.equal(model.tries, 0);
});
