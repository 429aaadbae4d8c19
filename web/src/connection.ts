// One WebSocket at a time, and what it says as events.

import type { Event } from "./machine.ts";
import { pieces, read } from "./protocol.ts";

/** How long an attempt may take until it counts as failed. Wakes come after the handshake. */
const HANDSHAKE_MS = 10_000;

/** What the browser may hold of our own messages before input is dropped, in bytes. */
const MAX_UNSENT = 8 << 20;

export class Connection {
  #socket: WebSocket | null = null;
  readonly #encoder = new TextEncoder();

  constructor(
    private readonly url: string,
    private readonly happened: (event: Event) => void,
    private readonly output: (bytes: Uint8Array) => void,
  ) {}

  /** Turns away from the former connection, if there is one, and opens a new one. */
  open(): void {
    this.close();
    const socket = new WebSocket(this.url);
    socket.binaryType = "arraybuffer";
    this.#socket = socket;
    // What a connection says after the page turned away from it is nobody's.
    const current = (): boolean => this.#socket === socket;
    const impatience = setTimeout(() => {
      if (current()) this.#lost(socket, 1006);
    }, HANDSHAKE_MS);
    socket.onopen = () => {
      clearTimeout(impatience);
      if (current()) this.happened({ type: "opened" });
    };
    socket.onmessage = ({ data }: MessageEvent<string | ArrayBuffer>) => {
      if (!current()) return;
      if (typeof data !== "string") return this.output(new Uint8Array(data));
      const message = read(data);
      if (message !== null) this.happened({ type: "message", message });
    };
    socket.onclose = ({ code }) => {
      clearTimeout(impatience);
      if (current()) this.#lost(socket, code);
    };
  }

  close(): void {
    const socket = this.#socket;
    this.#socket = null;
    socket?.close();
  }

  /** A message of ours. Lost if there is no connection, as what is typed then. */
  say(text: string): void {
    if (this.#socket?.readyState === WebSocket.OPEN) this.#socket.send(text);
  }

  type(data: string): void {
    this.send(this.#encoder.encode(data));
  }

  send(bytes: Uint8Array<ArrayBuffer>): void {
    const socket = this.#socket;
    if (socket?.readyState !== WebSocket.OPEN || socket.bufferedAmount > MAX_UNSENT) return;
    for (const piece of pieces(bytes)) socket.send(piece);
  }

  #lost(socket: WebSocket, code: number): void {
    this.#socket = null;
    socket.close();
    this.happened({ type: "closed", code });
  }
}
