//! What an operator may later want to know happened: the kinds, in the contract's words.

use std::fmt;

macro_rules! event_kinds {
    ($($(#[$doc:meta])* $kind:ident = $word:literal,)*) => {
        /// A kind of event. `docs/events.md` says what is noted with each.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum EventKind {
            $($(#[$doc])* $kind,)*
        }

        impl EventKind {
            /// Every kind there is.
            pub const ALL: &[Self] = &[$(Self::$kind),*];

            /// The word in the record.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$kind => $word,)*
                }
            }
        }
    };
}

event_kinds! {
    AuthFailed = "auth.failed",
    DaemonStarted = "daemon.started",
    DaemonShutdown = "daemon.shutdown",
    SandboxCreated = "sandbox.created",
    SandboxDestroyed = "sandbox.destroyed",
    SandboxStopped = "sandbox.stopped",
    SandboxStarted = "sandbox.started",
    SandboxUpdated = "sandbox.updated",
    ThermalPause = "thermal.pause",
    /// Put to sleep although its agent did not say whether it works.
    ThermalForcePause = "thermal.force_pause",
    ThermalSnapshot = "thermal.snapshot",
    ThermalSnapshotFailed = "thermal.snapshot_failed",
    ThermalWake = "thermal.wake",
    /// A program in a sandbox was kept from connecting. Not in the contract.
    EgressDenied = "egress.denied",
    ShellSession = "shell.session",
    ShellWebSession = "shell.web_session",
    ExecPipedSession = "exec.piped_session",
    PublishCreated = "publish.created",
    PublishDeleted = "publish.deleted",
    ProxyError = "proxy.error",
    /// Of a domain of one's own. Not in the contract, nor is the next.
    CertificateIssued = "certificate.issued",
    CertificateFailed = "certificate.failed",
    SnapshotCreated = "snapshot.created",
    SnapshotResumed = "snapshot.resumed",
    SnapshotDeleted = "snapshot.deleted",
    UserCreated = "user.created",
    UserDeleted = "user.deleted",
    UserKeyRotated = "user.key_rotated",
}

impl EventKind {
    /// Whether who has no account here, or a program in a guest, can bring about any number of it.
    pub fn is_anybodys(self) -> bool {
        matches!(
            self,
            Self::AuthFailed | Self::ProxyError | Self::EgressDenied | Self::CertificateFailed
        )
    }
}

impl fmt::Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
