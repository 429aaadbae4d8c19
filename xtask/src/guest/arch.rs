//! The architectures a guest is built for, and what each is called by those who are asked for it.
//!
//! For the host's own everything comes out of the host's apt and compiler. For another one, which
//! only tests need, apt keeps lists of its own ([`super::apt`]), the compiler brings its own C
//! library and linker ([`super::agent`]), and the image is unpacked but not configured
//! ([`super::image`]), because that takes running its programs.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

/// What a guest's instructions are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arch {
    Amd64,
    Arm64,
}

impl Arch {
    /// This host's own.
    #[cfg(target_arch = "x86_64")]
    pub(crate) const HOST: Self = Self::Amd64;
    /// This host's own.
    #[cfg(target_arch = "aarch64")]
    pub(crate) const HOST: Self = Self::Arm64;

    /// Reads what is behind `--arch`: the names of Debian and of the kernel.
    pub(super) fn parse(word: &str) -> Result<Self> {
        match word {
            "amd64" | "x86_64" => Ok(Self::Amd64),
            "arm64" | "aarch64" => Ok(Self::Arm64),
            other => bail!("unknown architecture {other}; there are amd64 and arm64"),
        }
    }

    /// As Debian says it.
    pub(crate) fn debian(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    /// As Rust's targets begin.
    fn rust(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64",
            Self::Arm64 => "aarch64",
        }
    }

    /// Rust's target with a C library of its own.
    pub(super) fn musl(self) -> String {
        format!("{}-unknown-linux-musl", self.rust())
    }

    /// Rust's target with the C library of the distribution.
    pub(super) fn gnu(self) -> String {
        format!("{}-unknown-linux-gnu", self.rust())
    }

    /// The meta package that always stands for the newest cloud kernel of the release.
    pub(crate) fn kernel_package(self) -> String {
        format!("linux-image-cloud-{}", self.debian())
    }

    /// The directory with its files: the given one for the host's own, one beside it for another.
    pub(super) fn directory(self, own: &Path) -> PathBuf {
        if self == Self::HOST {
            return own.to_owned();
        }
        let mut name = own.file_name().unwrap_or_default().to_owned();
        name.push(format!("-{}", self.debian()));
        own.with_file_name(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_architecture_goes_by_two_names_and_has_one_directory() {
        for (words, arch) in
            [(["amd64", "x86_64"], Arch::Amd64), (["arm64", "aarch64"], Arch::Arm64)]
        {
            for word in words {
                assert_eq!(Arch::parse(word).expect("known"), arch);
            }
            let dir = arch.directory(Path::new("/t/guest"));
            let own = arch == Arch::HOST;
            assert_eq!(dir == Path::new("/t/guest"), own);
            assert!(own || dir == Path::new("/t").join(format!("guest-{}", words[0])));
        }
        assert!(Arch::parse("riscv64").is_err());
    }
}
