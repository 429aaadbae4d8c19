// The row of keys that touch keyboards lack.

/** The keys that are there, by their name in the page. */
export type Key = "esc" | "tab" | "up" | "down" | "left" | "right";

const ARROWS = { up: "A", down: "B", right: "C", left: "D" } as const;

/** What a key sends. Arrows differ where a program asked for it. */
export function sequence(key: Key, applicationCursor: boolean): string {
  switch (key) {
    case "esc":
      return "\x1b";
    case "tab":
      return "\t";
    default:
      return (applicationCursor ? "\x1bO" : "\x1b[") + ARROWS[key];
  }
}

/** What `data` is with Ctrl held. Only a single character has such a form. */
export function withControl(data: string): string {
  if (data.length !== 1) return data;
  if (data === " ") return "\0";
  if (data === "?") return "\x7f";
  const code = data.toUpperCase().charCodeAt(0);
  return code >= 0x40 && code <= 0x5f ? String.fromCharCode(code & 0x1f) : data;
}
