// The token: out of the address bar at once, and kept for a reload of this tab only.

/** What this tab keeps. */
export interface Kept {
  token: string;
  session: string;
}

/**
 * The token in the fragment, which is taken out of the address bar and of the history. Null if
 * there is none.
 */
export function fromFragment(location: Location, history: History): string | null {
  const token = new URLSearchParams(location.hash.slice(1)).get("token");
  if (location.hash !== "") {
    history.replaceState(null, "", location.pathname + location.search);
  }
  return token === "" ? null : token;
}

/** What was kept for `id`, if anything that makes sense was. */
export function load(storage: Storage, id: string): Kept | null {
  try {
    const value: unknown = JSON.parse(storage.getItem(key(id)) ?? "null");
    if (typeof value !== "object" || value === null) return null;
    const { token, session } = value as Record<string, unknown>;
    if (typeof token !== "string" || typeof session !== "string") return null;
    return { token, session };
  } catch {
    // Not ours, or the browser keeps nothing.
    return null;
  }
}

export function save(storage: Storage, id: string, kept: Kept | null): void {
  try {
    if (kept === null) storage.removeItem(key(id));
    else storage.setItem(key(id), JSON.stringify(kept));
  } catch {
    // A browser that keeps nothing asks for the token after a reload.
  }
}

function key(id: string): string {
  return `shell:${id}`;
}
