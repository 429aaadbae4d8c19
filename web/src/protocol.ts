// What page and daemon say to each other, besides the bytes of the terminal.

/** The largest piece of input sent as one message, in bytes. */
export const MAX_INPUT = 4096;

/** What the daemon says in text. */
export type ServerMessage =
  /** The token was right; `status` is how the sandbox was before it is woken for us. */
  | { type: "connected"; sandbox: string; status: string }
  /** The shell is there; what comes next is its output. */
  | { type: "session"; session: string }
  /** The end, and why. */
  | { type: "error"; error: string };

/** The first message. An empty session asks for a new shell, another one to go on with it. */
export function authenticate(token: string, session: string): string {
  return JSON.stringify({ type: "auth", token, session });
}

export function resize(rows: number, cols: number): string {
  return JSON.stringify({ type: "resize", rows, cols });
}

/** Reads a text message; null for what this page does not know. */
export function read(text: string): ServerMessage | null {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    return null;
  }
  if (typeof value !== "object" || value === null) return null;
  const fields = value as Record<string, unknown>;
  const word = (name: string): string => {
    const field = fields[name];
    return typeof field === "string" ? field : "";
  };
  switch (fields["type"]) {
    case "connected":
      return { type: "connected", sandbox: word("sandbox"), status: word("status") };
    case "session":
      return { type: "session", session: word("session_id") };
    case "error":
      return { type: "error", error: word("error") };
    default:
      return null;
  }
}

/** Cuts input into messages. */
export function* pieces(bytes: Uint8Array<ArrayBuffer>): Generator<Uint8Array<ArrayBuffer>> {
  for (let from = 0; from < bytes.length; from += MAX_INPUT) {
    yield bytes.subarray(from, from + MAX_INPUT);
  }
}
