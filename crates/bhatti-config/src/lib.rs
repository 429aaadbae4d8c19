//! The configuration file: read in layers, checked wholly, typos pointed at.
//!
//! ```text
//! $BHATTI_CONFIG set ──▶ that file, nothing else
//! otherwise          ──▶ /etc/bhatti/config.yaml          all keys
//!                        (or the deprecated /var/lib one)
//!                        ~/.bhatti/config.yaml            api_url and auth_token, where still empty
//! ```
//!
//! Promises:
//! - A key that does nothing is never accepted in silence: unknown ones are problems, those of
//!   other versions are warnings.
//! - Every problem of a file is reported in one go, each as `file:line: sentence`.
//! - No environment, no home directory, no clock: [`Places`] says where to look.
//!
//! Not here: flags and environment variables of the command line, which belong to `bhatti`.
#![forbid(unsafe_code)]

mod domain;
mod duration;
mod file;
mod layer;
mod node;
mod problem;
mod server;

pub use domain::{Certificates, Domain};
pub use layer::{Config, Endpoint, Places, load, load_endpoint};
pub use problem::{ConfigError, Problem, Problems};
pub use server::{
    EngineChoice, Goldens, JAIL_UIDS, Limits, OnShutdown, PublicLimits, PublicProxy, ServerConfig,
    Thermal,
};
