// The terminal on the page: its size, its colours, and what is copied and pasted.

import { FitAddon } from "@xterm/addon-fit";
import { Terminal } from "@xterm/xterm";
import { type Key, sequence, withControl } from "./keys.ts";
import { theme } from "./theme.ts";

const FONT = 'ui-monospace, "SF Mono", "Cascadia Mono", Menlo, "DejaVu Sans Mono", monospace';

/** How many bytes may wait to be shown. Beyond, the page skips to the latest. */
const MAX_UNSHOWN = 8 << 20;

export interface Listeners {
  typed(data: string): void;
  bytes(bytes: Uint8Array<ArrayBuffer>): void;
  resized(rows: number, cols: number): void;
  overrun(): void;
}

export class Screen {
  readonly #terminal: Terminal;
  readonly #fit = new FitAddon();
  #unshown = 0;
  #control = false;
  /** Told when the held Ctrl comes or goes. */
  onControl: (held: boolean) => void = () => {};

  constructor(
    private readonly element: HTMLElement,
    private readonly listeners: Listeners,
  ) {
    const light = matchMedia("(prefers-color-scheme: light)");
    const touch = matchMedia("(pointer: coarse)").matches;
    const terminal = new Terminal({
      fontFamily: FONT,
      fontSize: touch ? 13 : 14,
      lineHeight: 1.15,
      scrollback: 5000,
      cursorBlink: true,
      macOptionIsMeta: true,
      // Programs choose their colours for a background they do not know.
      minimumContrastRatio: 4.5,
      theme: theme(light.matches),
    });
    this.#terminal = terminal;
    light.addEventListener("change", () => (terminal.options.theme = theme(light.matches)));
    terminal.loadAddon(this.#fit);
    terminal.open(element);
    terminal.onData((data) => this.#typed(data));
    terminal.onBinary((data) => listeners.bytes(Uint8Array.from(data, (c) => c.charCodeAt(0))));
    terminal.onResize(({ rows, cols }) => listeners.resized(rows, cols));
    terminal.attachCustomKeyEventHandler((event) => this.#key(event));
    new ResizeObserver(() => this.fit()).observe(element);
    this.fit();
  }

  get rows(): number {
    return this.#terminal.rows;
  }

  get cols(): number {
    return this.#terminal.cols;
  }

  fit(): void {
    if (this.element.clientHeight > 0) this.#fit.fit();
  }

  focus(): void {
    this.#terminal.focus();
  }

  /** What the shell says. */
  show(bytes: Uint8Array): void {
    if (this.#unshown > MAX_UNSHOWN) return this.listeners.overrun();
    this.#unshown += bytes.length;
    this.#terminal.write(bytes, () => (this.#unshown -= bytes.length));
  }

  /** In its place among what the shell said: what still waits to be shown goes too. */
  clear(): void {
    this.#terminal.write("\x1bc");
  }

  /** Calls back once all that came is shown. */
  whenShown(then: () => void): void {
    this.#terminal.write("", then);
  }

  /** A line of the page's own. */
  notice(text: string): void {
    this.#terminal.write(`\x1b[0m\r\n\x1b[2m── ${text} ──\x1b[0m\r\n`);
  }

  press(key: Key): void {
    this.listeners.typed(sequence(key, this.#terminal.modes.applicationCursorKeysMode));
  }

  /** Holds Ctrl for the next character, or lets it go. */
  holdControl(held: boolean): void {
    this.#control = held;
    this.onControl(held);
  }

  get control(): boolean {
    return this.#control;
  }

  async paste(): Promise<void> {
    try {
      this.#terminal.paste(await navigator.clipboard.readText());
    } catch {
      // The user said no, or the browser does.
    }
  }

  #typed(data: string): void {
    const held = this.#control;
    if (held) this.holdControl(false);
    this.listeners.typed(held ? withControl(data) : data);
  }

  /** Ctrl+Shift+C and V as in other terminals; false keeps the terminal from taking a key. */
  #key(event: KeyboardEvent): boolean {
    if (!event.ctrlKey || !event.shiftKey || event.altKey || event.metaKey) return true;
    if (event.code === "KeyV") return false; // The browser pastes.
    if (event.code !== "KeyC") return true;
    // Also where nothing is selected: the browser's own meaning is another, and no use here.
    event.preventDefault();
    if (event.type === "keydown" && this.#terminal.hasSelection()) {
      copy(this.#terminal.getSelection());
    }
    return false;
  }
}

/** Without TLS the browser has no clipboard to write to, but still lets a user copy. */
function copy(text: string): void {
  if (navigator.clipboard) {
    navigator.clipboard.writeText(text).catch(() => {});
    return;
  }
  const answer = (event: ClipboardEvent): void => {
    event.clipboardData?.setData("text/plain", text);
    event.preventDefault();
    event.stopImmediatePropagation();
  };
  document.addEventListener("copy", answer, { capture: true, once: true });
  document.execCommand("copy");
  document.removeEventListener("copy", answer, { capture: true });
}
