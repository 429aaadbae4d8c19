// The page is as high as what can be seen of it: a keyboard on the screen takes its share.

export function followViewport(root: HTMLElement, changed: () => void): void {
  const viewport = window.visualViewport;
  if (viewport === null) return;
  const follow = (): void => {
    // Zoomed in by the user, who wants to see a part of the page and not a smaller page.
    if (viewport.scale > 1.01) return;
    root.style.setProperty("--seen-height", `${viewport.height}px`);
    root.style.setProperty("--seen-top", `${viewport.offsetTop}px`);
    changed();
  };
  viewport.addEventListener("resize", follow);
  viewport.addEventListener("scroll", follow);
  follow();
}
