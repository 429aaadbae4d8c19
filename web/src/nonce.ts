// Style sheets made by a script need the page's nonce, or the browser refuses them. xterm.js makes
// some and knows of no nonce.

/** Gives every style sheet that is made from now on the nonce of this page's own script. */
export function nonceStyles(document: Document): void {
  const nonce = document.querySelector<HTMLScriptElement>("script[nonce]")?.nonce;
  if (!nonce) return;
  const create = document.createElement.bind(document) as (name: string) => HTMLElement;
  document.createElement = ((name: string) => {
    const element = create(name);
    if (element instanceof HTMLStyleElement) element.nonce = nonce;
    return element;
  }) as typeof document.createElement;
}
