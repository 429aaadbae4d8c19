//! Machines that a former daemon started: known by a record or by a control group, proven, ended,
//! swept.
//!
//! Nothing of the machine is needed for that: no handle, no connection, no directory.

use std::io;
use std::time::Duration;

use bhatti_engine::{EngineError, VmRecord};
use bhatti_types::EngineId;
use camino::Utf8Path;

use crate::cgroup::{Cgroups, Cleared};
use crate::machine_dir::MachineDir;
use crate::process::{self, Process};
use crate::{blocking, file_error};

/// How long the kernel may take to end a process that was killed.
pub const DEATH_DEADLINE: Duration = Duration::from_secs(10);
/// How long it may take to begin with that.
pub const DEATH_PATIENCE: Duration = Duration::from_secs(1);
/// How long until who watches a machine that was killed has told of its end: after the death its control
/// group is cleared, and its console kept.
pub const END_DEADLINE: Duration = Duration::from_secs(30);

/// What became of a machine that was killed: it has ended, or nobody will say so in time.
pub async fn told_of_the_end(
    mut exit: tokio::sync::watch::Receiver<Option<bhatti_engine::Exit>>,
) -> Result<(), EngineError> {
    match tokio::time::timeout(END_DEADLINE, exit.wait_for(Option::is_some)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(_)) => Err(EngineError::Control {
            command: "kill".to_owned(),
            message: "nobody watches this machine any more".to_owned(),
        }),
        Err(_) => {
            let seconds = END_DEADLINE.as_secs();
            Err(EngineError::Timeout { action: "end when killed", seconds })
        }
    }
}

/// Where machines of this daemon and of those before it are found.
#[derive(Debug)]
pub struct Machines {
    pub cgroups: Cgroups,
    pub host_boot_id: String,
    /// What runs them, for errors.
    program: String,
}

impl Machines {
    /// Prepares the control group of that name.
    pub fn prepare(cgroup: &str, program: &Utf8Path) -> Result<Self, EngineError> {
        let path = Utf8Path::new("/proc/sys/kernel/random/boot_id");
        Ok(Self {
            cgroups: Cgroups::prepare(cgroup)?,
            host_boot_id: process::host_boot_id().map_err(file_error("read", path))?,
            program: program.to_string(),
        })
    }

    /// The process of a record, if one with that identity is alive in this boot of the host.
    pub fn recorded(&self, record: &VmRecord) -> Result<Option<Process>, EngineError> {
        if record.host_boot_id != self.host_boot_id {
            return Ok(None);
        }
        Process::find(record.pid, record.start_ticks)
            .map_err(|source| EngineError::Spawn { program: self.program.clone(), source })
    }

    /// See [`bhatti_engine::Engine::end`].
    pub async fn end(&self, record: &VmRecord) -> Result<(), EngineError> {
        if let Some(process) = self.recorded(record)? {
            process.kill();
            if !process.ends_within(DEATH_DEADLINE, Duration::ZERO).await {
                let seconds = DEATH_DEADLINE.as_secs();
                return Err(EngineError::Timeout { action: "end when killed", seconds });
            }
        }
        self.remove_traces(record).await
    }

    /// Removes what is left of a machine whose process is gone.
    pub async fn remove_traces(&self, record: &VmRecord) -> Result<(), EngineError> {
        // Whatever is in that group was started by us, and nobody can have it any more.
        let group = self.cgroups.recorded(record);
        let path = record.dir.clone();
        blocking(move || {
            group.clear().map_err(|source| cannot("empty a control group", source))?;
            if let Ok(dir) = MachineDir::open(&path) {
                dir.remove_traces();
            }
            Ok(())
        })
        .await
    }

    /// See [`bhatti_engine::Engine::sweep`]; blocks. A machine that does not end, because the kernel
    /// holds it in a disk or a mount that is gone, is said and left to the next start: it is no
    /// reason to do without all others.
    pub fn sweep(&self, keep: &[EngineId]) -> Result<Vec<EngineId>, EngineError> {
        let machines = self.cgroups.machines();
        let machines = machines.map_err(|source| cannot("list the control groups", source))?;
        let mut ended = Vec::new();
        for id in machines.into_iter().filter(|id| !keep.contains(id)) {
            match self.cgroups.group(&id).clear() {
                Ok(Cleared::Killed) => ended.push(id),
                Ok(Cleared::Empty) => {}
                Err(error) => tracing::error!(%id, %error, "a machine of nobody's does not end"),
            }
        }
        Ok(ended)
    }
}

fn cannot(what: &str, source: io::Error) -> EngineError {
    EngineError::Confine { what: format!("cannot {what}"), source }
}

#[cfg(test)]
mod tests {
    use bhatti_engine::Exit;
    use tokio::sync::watch;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_kills_does_not_wait_for_ever() {
        let exit = watch::Sender::new(None);
        let waits = told_of_the_end(exit.subscribe()).await;
        assert!(matches!(waits, Err(EngineError::Timeout { .. })), "{waits:?}");
        let watched = exit.subscribe();
        exit.send_replace(Some(Exit::Killed));
        told_of_the_end(watched).await.unwrap();
        let unwatched = watch::Sender::new(None).subscribe();
        assert!(matches!(told_of_the_end(unwatched).await, Err(EngineError::Control { .. })));
    }

    /// On this host's real hierarchies; needs root.
    #[test]
    fn one_that_does_not_end_keeps_nobody_from_the_others() {
        let parent = format!("bhatti-former-{}", std::process::id());
        let machines = Machines::prepare(&parent, "/vmm".into()).unwrap();
        let ids: Vec<EngineId> = (0..3).map(|_| EngineId::random()).collect();
        for id in &ids {
            for place in machines.cgroups.group(id).paths() {
                std::fs::create_dir(place).unwrap();
            }
        }
        // Nothing ends a group of which a part is somebody else's: it cannot be removed.
        let mut sorted = ids.clone();
        sorted.sort();
        let stuck = &machines.cgroups.group(&sorted[0]).paths()[0].join("inner");
        std::fs::create_dir(stuck).unwrap();
        assert_eq!(machines.sweep(&sorted[2..]).unwrap(), [], "nobody was in there");
        assert_eq!(machines.cgroups.machines().unwrap(), [sorted[0].clone(), sorted[2].clone()]);

        std::fs::remove_dir(stuck).unwrap();
        machines.sweep(&[]).unwrap();
        assert_eq!(machines.cgroups.machines().unwrap(), []);
        machines.cgroups.forget_parent();
    }
}
