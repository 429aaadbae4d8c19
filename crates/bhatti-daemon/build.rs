//! Lists what `make web` has built, so that the daemon carries it.

use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

fn main() {
    // Where it is now: the program that this becomes may have been built at another place.
    let here = std::env::var_os("CARGO_MANIFEST_DIR").expect("Cargo sets it");
    let web = Path::new(&here).join("../../web");
    let (dist, sources) = (web.join("dist"), web.join("src"));
    for path in [&dist, &sources] {
        println!("cargo::rerun-if-changed={}", path.display());
    }
    let generated = PathBuf::from(std::env::var_os("OUT_DIR").expect("Cargo sets it"));
    let written = assets(&dist.join("assets"), &dist.join("index.html"))
        .and_then(|code| std::fs::write(generated.join("web.rs"), code));
    match written {
        Ok(()) if newest(&sources) > newest(&dist) => {
            println!("cargo::warning=web/dist is older than web/src; run `make web`");
        }
        Ok(()) => {}
        Err(error) => {
            println!(
                "cargo::error=web/dist, the page of the web shell, is not built ({error}); run `make web`"
            );
        }
    }
}

/// The page and its files as Rust.
fn assets(dir: &Path, page: &Path) -> io::Result<String> {
    // Only to say now, and not in the compiler's words, that it is missing.
    std::fs::metadata(page)?;
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        names.extend(entry?.file_name().into_string().ok());
    }
    names.sort();
    let mut code = format!("const PAGE: &str = include_str!({page:?});\n");
    code.push_str("const ASSETS: &[Asset] = &[\n");
    for name in names.iter().filter(|name| !name.ends_with(".gz")) {
        let (plain, gzip) = (dir.join(name), dir.join(format!("{name}.gz")));
        writeln!(
            code,
            "    Asset {{ name: {name:?}, plain: include_bytes!({plain:?}), gzip: include_bytes!({gzip:?}) }},"
        )
        .expect("a String takes all text");
    }
    code.push_str("];\n");
    Ok(code)
}

/// When the last file of `dir` and what is in it was changed.
fn newest(dir: &Path) -> Option<SystemTime> {
    let entries = std::fs::read_dir(dir).ok()?;
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => newest(&entry.path()),
            Ok(metadata) => metadata.modified().ok(),
            Err(_) => None,
        })
        .max()
        .flatten()
}
