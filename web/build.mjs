// Makes dist/: the page with the names of its files, and the files with a hash of what is in
// them. With --test, runs the tests instead.

import { spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { mkdir, readFile, readdir, rename, rm, writeFile } from "node:fs/promises";
import { gzipSync } from "node:zlib";
import { build } from "esbuild";

const here = new URL(".", import.meta.url);
const at = (path) => new URL(path, here);

/** What browsers are asked to understand: those of the last three years or so. */
const TARGET = ["chrome109", "firefox115", "safari16"];

async function bundle() {
  const result = await build({
    absWorkingDir: here.pathname,
    entryPoints: { shell: "src/main.ts" },
    bundle: true,
    minify: true,
    write: false,
    outdir: "dist",
    format: "iife",
    target: TARGET,
    charset: "utf8",
    // Licences have to travel with the code, once and whole.
    legalComments: "none",
    banner: { js: await licences(), css: await licences() },
    logLevel: "warning",
  });
  const files = new Map();
  for (const file of result.outputFiles) {
    const name = file.path.split("/").pop();
    files.set(name, Buffer.from(file.contents));
  }
  files.set("icon.svg", await readFile(at("src/icon.svg")));
  return files;
}

/** What those who wrote the terminal ask for: their names and their terms. */
async function licences() {
  const texts = ["xterm", "addon-fit"].map(async (name) => {
    const text = await readFile(at(`node_modules/@xterm/${name}/LICENSE`), "utf8");
    return `@xterm/${name}\n\n${text.trim()}`;
  });
  return `/*!\n${(await Promise.all(texts)).join("\n\n")}\n*/`;
}

/** `shell.js` becomes `shell-1a2b3c4d.js`, so that browsers may keep it for ever. */
function hashed(name, bytes) {
  const hash = createHash("sha256").update(bytes).digest("hex").slice(0, 16);
  return name.replace(/(\.[a-z]+)$/, `-${hash}$1`);
}

async function dist() {
  const files = await bundle();
  let page = await readFile(at("src/index.html"), "utf8");
  // Made beside the real one and put in its place at the end: a build that dies leaves the old.
  await rm(at("dist.part/"), { recursive: true, force: true });
  await mkdir(at("dist.part/assets/"), { recursive: true });
  for (const [name, bytes] of files) {
    const final = hashed(name, bytes);
    if (!page.includes(`assets/${name}"`)) throw new Error(`index.html does not use ${name}`);
    page = page.replaceAll(`assets/${name}"`, `assets/${final}"`);
    await writeFile(at(`dist.part/assets/${final}`), bytes);
    await writeFile(at(`dist.part/assets/${final}.gz`), gzipSync(bytes, { level: 9 }));
  }
  await writeFile(at("dist.part/index.html"), page);
  await rm(at("dist/"), { recursive: true, force: true });
  await rename(at("dist.part/"), at("dist/"));
}

async function test() {
  const names = (await readdir(at("test/"))).filter((name) => name.endsWith(".test.ts"));
  await rm(at("build/"), { recursive: true, force: true });
  await build({
    absWorkingDir: here.pathname,
    entryPoints: names.map((name) => `test/${name}`),
    outdir: "build",
    outExtension: { ".js": ".mjs" },
    bundle: true,
    platform: "node",
    format: "esm",
    target: "node18",
    logLevel: "warning",
  });
  const built = names.map((name) => at(`build/${name.replace(/ts$/, "mjs")}`).pathname);
  const run = spawnSync(process.execPath, ["--test", ...built], { stdio: "inherit" });
  process.exitCode = run.status ?? 1;
}

if (process.argv.includes("--test")) await test();
else await dist();
