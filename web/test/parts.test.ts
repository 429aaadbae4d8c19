// The small parts of the page that have no page in them.

import assert from "node:assert/strict";
import { test } from "node:test";
import { fromFragment, load, save } from "../src/keep.ts";
import { sequence, withControl } from "../src/keys.ts";
import { initial, type Model, type State } from "../src/machine.ts";
import { authenticate, MAX_INPUT, pieces, read } from "../src/protocol.ts";
import { words } from "../src/words.ts";

test("messages are read, and nonsense is not", () => {
  assert.deepEqual(read('{"sandbox":"dev","status":"stopped","type":"connected"}'), {
    type: "connected",
    sandbox: "dev",
    status: "stopped",
  });
  assert.deepEqual(read('{"session_id":"s1","type":"session"}'), { type: "session", session: "s1" });
  assert.deepEqual(read('{"error":"unauthorized","type":"error"}'), {
    type: "error",
    error: "unauthorized",
  });
  assert.deepEqual(read('{"type":"connected","sandbox":7}'), {
    type: "connected",
    sandbox: "",
    status: "",
  });
  for (const nonsense of ["", "{", "null", "7", '"x"', "[]", "{}", '{"type":"other"}']) {
    assert.equal(read(nonsense), null, nonsense);
  }
  assert.deepEqual(JSON.parse(authenticate('a"b', "")), { type: "auth", token: 'a"b', session: "" });
});

test("input is cut into messages and nothing is lost", () => {
  const bytes = Uint8Array.from({ length: 2 * MAX_INPUT + 1 }, (_, i) => i % 251);
  const cut = [...pieces(bytes)];
  assert.deepEqual(cut.map((piece) => piece.length), [MAX_INPUT, MAX_INPUT, 1]);
  assert.deepEqual(cut.flatMap((piece) => [...piece]), [...bytes]);
  assert.deepEqual([...pieces(new Uint8Array())], []);
});

test("keys send what terminals send", () => {
  assert.equal(sequence("up", false), "\x1b[A");
  assert.equal(sequence("left", true), "\x1bOD");
  assert.equal(sequence("esc", true), "\x1b");
  assert.equal(sequence("tab", false), "\t");
  assert.equal(withControl("c"), "\x03");
  assert.equal(withControl("C"), "\x03");
  assert.equal(withControl("["), "\x1b");
  assert.equal(withControl(" "), "\0");
  for (const same of ["1", "é", "ls", "\r"]) assert.equal(withControl(same), same);
});

test("the token leaves the address bar, whatever else was in the fragment", () => {
  const at = (hash: string): [string | null, string[]] => {
    const shown: string[] = [];
    const location = { hash, pathname: "/_shell/x", search: "?a" } as Location;
    const history = {
      replaceState: (_data: unknown, _unused: string, url: string) => shown.push(url),
    } as unknown as History;
    return [fromFragment(location, history), shown];
  };
  assert.deepEqual(at("#token=abc"), ["abc", ["/_shell/x?a"]]);
  assert.deepEqual(at("#x=1&token=abc"), ["abc", ["/_shell/x?a"]]);
  assert.deepEqual(at("#token="), [null, ["/_shell/x?a"]]);
  assert.deepEqual(at("#other"), [null, ["/_shell/x?a"]]);
  assert.deepEqual(at(""), [null, []]);
});

/** A storage that holds strings. */
function storage(): Storage {
  const values = new Map<string, string>();
  return {
    getItem: (key: string) => values.get(key) ?? null,
    setItem: (key: string, value: string) => void values.set(key, value),
    removeItem: (key: string) => void values.delete(key),
  } as unknown as Storage;
}

test("a tab keeps its token, for one sandbox, until it is forgotten", () => {
  const kept = storage();
  save(kept, "a", { token: "t", session: "s1" });
  assert.deepEqual(load(kept, "a"), { token: "t", session: "s1" });
  assert.equal(load(kept, "b"), null);
  save(kept, "a", null);
  assert.equal(load(kept, "a"), null);
  for (const broken of ["{", "7", '{"token":1,"session":""}']) {
    kept.setItem("shell:a", broken);
    assert.equal(load(kept, "a"), null);
  }
  const refuses = { getItem: () => { throw new Error("no"); }, setItem: () => { throw new Error("no"); } };
  assert.equal(load(refuses as unknown as Storage, "a"), null);
  save(refuses as unknown as Storage, "a", { token: "t", session: "" });
});

test("every state says something, and those that are over say what to do", () => {
  const ends = ["exited", "taken", "unauthorized", "crowded", "unavailable", "no-shell", "lost", "failed"];
  const states: State[] = [
    { at: "asking" },
    { at: "connecting" },
    { at: "starting", waking: true },
    { at: "starting", waking: false },
    { at: "connected" },
    { at: "waiting", seconds: 2 },
    ...ends.map((why) => ({ at: "over", why }) as State),
  ];
  const labels = states.map((state) => {
    const model: Model = { ...initial, state, sandbox: "dev" };
    const said = words(model);
    assert.ok(said.label !== "" && said.said !== "");
    if (said.card !== null) {
      assert.ok(said.card.asks !== (said.card.button !== null), "a token or a button");
    }
    assert.equal(said.card !== null, state.at === "asking" || state.at === "over");
    return said.said;
  });
  assert.equal(new Set(labels).size, labels.length, "no two states sound the same");
});

test("a countdown is read out once", () => {
  const said = (seconds: number) => words({ ...initial, state: { at: "waiting", seconds } });
  assert.equal(said(4).said, said(3).said);
  assert.notEqual(said(4).label, said(3).label);
});
