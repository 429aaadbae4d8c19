// The terminal's colours, in the light and in the dark.

import type { ITheme } from "@xterm/xterm";

const dark: ITheme = {
  background: "#15171b",
  foreground: "#d9dce1",
  cursor: "#f0a36b",
  cursorAccent: "#15171b",
  selectionBackground: "#3a4454",
  scrollbarSliderBackground: "#ffffff22",
  scrollbarSliderHoverBackground: "#ffffff3a",
  scrollbarSliderActiveBackground: "#ffffff50",
  black: "#2b2f36",
  red: "#f2777a",
  green: "#8fc78c",
  yellow: "#e3b96a",
  blue: "#7fb0e8",
  magenta: "#c99be0",
  cyan: "#73c2c0",
  white: "#c8ccd2",
  brightBlack: "#868d98",
  brightRed: "#ff9a98",
  brightGreen: "#aadfa5",
  brightYellow: "#f3d38f",
  brightBlue: "#a5caf5",
  brightMagenta: "#dfbdf0",
  brightCyan: "#9adcd8",
  brightWhite: "#ffffff",
};

const light: ITheme = {
  background: "#fcfcfa",
  foreground: "#23272e",
  cursor: "#b4531a",
  cursorAccent: "#fcfcfa",
  selectionBackground: "#cfdcf0",
  scrollbarSliderBackground: "#00000022",
  scrollbarSliderHoverBackground: "#0000003a",
  scrollbarSliderActiveBackground: "#00000050",
  black: "#23272e",
  red: "#b3282d",
  green: "#2c7030",
  yellow: "#855800",
  blue: "#1f5fb0",
  magenta: "#8a3da6",
  cyan: "#0f6a70",
  white: "#d5d8dc",
  brightBlack: "#666d78",
  brightRed: "#c9363a",
  brightGreen: "#337a37",
  brightYellow: "#8f5f00",
  brightBlue: "#2a6cc4",
  brightMagenta: "#994bb5",
  brightCyan: "#14757b",
  brightWhite: "#f4f5f6",
};

/** The theme that goes with the user's setting. */
export function theme(prefersLight: boolean): ITheme {
  return prefersLight ? light : dark;
}
