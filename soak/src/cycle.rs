//! One cycle: several operations at once, perhaps a crash under them, then what came of each.

use std::process::{Command, Output};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::guest;
use crate::life::{Fate, Write};
use crate::plan::{Crash, Cycle, Wish};
use crate::stage::{Stage, patiently, snapshot_name, text};

/// Longer than any state takes to come about.
const DEADLINE: Duration = Duration::from_secs(60);

/// What is done to one sandbox.
#[derive(Clone, Copy, Debug)]
enum Deed {
    Create,
    Resume(usize),
    Write(Write),
    Stop,
    Start,
    Doze,
    Snapshot(usize),
    Forget(usize),
    Destroy,
    KillVmm,
    StopAndKillVmm { after_ms: u64 },
}

impl Deed {
    fn name(&self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Resume(_) => "snapshot resume",
            Self::Write(_) => "exec",
            Self::Stop => "stop",
            Self::Start => "start",
            Self::Doze => "wait for sleep",
            Self::Snapshot(_) => "snapshot create",
            Self::Forget(_) => "snapshot delete",
            Self::Destroy => "destroy",
            Self::KillVmm => "kill -9 VMM",
            Self::StopAndKillVmm { .. } => "kill -9 VMM during stop",
        }
    }
}

/// A deed that is under way.
struct Act {
    place: usize,
    deed: Deed,
    command: Option<Command>,
    /// The process to kill, and when.
    victim: Option<(i32, Duration)>,
}

impl Stage {
    /// Runs one cycle and looks into the sandboxes it touched, and some others.
    pub(crate) fn cycle(&mut self, cycle: &Cycle) {
        let acts = self.acts(cycle);
        let mut line: Vec<String> = acts
            .iter()
            .map(|act| format!("{} {}", act.deed.name(), self.places[act.place].name))
            .collect();
        if let Some(Crash { after_ms, in_order }) = cycle.crash {
            let how = if in_order { "TERM" } else { "KILL" };
            line.push(format!("{how} daemon after {after_ms} ms"));
        }
        let results = self.perform(acts, cycle.crash);
        if cycle.crash.is_some() {
            self.daemon.run();
        }
        let mut look = cycle.look.clone();
        for (place, deed, output) in results {
            look.push(place);
            self.settle(place, &deed, output.as_ref(), cycle.crash.is_some());
        }
        look.sort_unstable();
        look.dedup();
        self.look_into(&look);
        let at = self.started.elapsed().as_secs();
        println!(
            "cycle {:>4} {at:>5} s  lost {}  {}",
            self.tally.cycles,
            self.tally.lost,
            line.join(", ")
        );
        self.tally.cycles += 1;
    }

    /// What the wishes of a cycle come down to, given what there is.
    fn acts(&mut self, cycle: &Cycle) -> Vec<Act> {
        let mut taken = Vec::new();
        let mut acts = Vec::new();
        for &(place, wish) in &cycle.wishes {
            let deed = self.deed(place, wish, cycle.resume, &mut taken);
            let name = &self.places[place].name;
            let victim = match deed {
                Deed::KillVmm => Some(Duration::ZERO),
                Deed::StopAndKillVmm { after_ms } => Some(Duration::from_millis(after_ms)),
                _ => None,
            };
            let victim = victim.and_then(|after| Some((self.daemon.vmm_pid(name)?, after)));
            acts.push(Act { place, deed, command: self.command_for(place, &deed), victim });
        }
        acts
    }

    fn deed(&mut self, place: usize, wish: Wish, resume: usize, taken: &mut Vec<usize>) -> Deed {
        let Some(life) = &mut self.places[place].life else {
            let there = self.snapshots[resume].is_some() && !taken.contains(&resume);
            // What is resumed is not deleted by another operation of the same cycle.
            if there {
                taken.push(resume);
            }
            return if there { Deed::Resume(resume) } else { Deed::Create };
        };
        match wish {
            Wish::Write { pick, sync } => Deed::Write(life.next_write(pick, sync)),
            Wish::Stop => Deed::Stop,
            Wish::Snapshot(number) if taken.contains(&number) => Deed::Stop,
            Wish::Snapshot(number) => {
                taken.push(number);
                match self.snapshots[number] {
                    None => Deed::Snapshot(number),
                    Some(_) => Deed::Forget(number),
                }
            }
            Wish::Start => Deed::Start,
            Wish::Doze => Deed::Doze,
            Wish::Destroy => Deed::Destroy,
            Wish::KillVmm => Deed::KillVmm,
            Wish::StopAndKillVmm { after_ms } => Deed::StopAndKillVmm { after_ms },
        }
    }

    fn command_for(&self, place: usize, deed: &Deed) -> Option<Command> {
        let name = self.places[place].name.as_str();
        Some(match deed {
            Deed::Create => self.create(place),
            Deed::Resume(number) => {
                let snapshot = snapshot_name(*number);
                self.command(&["snapshot", "resume", &snapshot, "--name", name])
            }
            Deed::Write(write) => {
                let life = self.places[place].life.as_ref()?;
                self.script(place, &guest::write(life, write))
            }
            Deed::Stop | Deed::StopAndKillVmm { .. } => self.command(&["stop", name]),
            Deed::Start => self.command(&["start", name]),
            Deed::Snapshot(number) => {
                self.command(&["snapshot", "create", name, "--name", &snapshot_name(*number)])
            }
            Deed::Forget(number) => {
                self.command(&["snapshot", "delete", &snapshot_name(*number), "-y"])
            }
            Deed::Destroy => self.command(&["destroy", name, "-y"]),
            Deed::Doze | Deed::KillVmm => return None,
        })
    }

    /// Does all of it at once, and ends the daemon in the midst of it if the plan says so.
    fn perform(
        &mut self,
        acts: Vec<Act>,
        crash: Option<Crash>,
    ) -> Vec<(usize, Deed, Option<Output>)> {
        let daemon = &mut self.daemon;
        std::thread::scope(|scope| {
            let running: Vec<_> = acts
                .into_iter()
                .map(|Act { place, deed, command, victim }| {
                    if let Some((pid, after)) = victim {
                        scope.spawn(move || {
                            std::thread::sleep(after);
                            // It may have ended by itself, or by the stop.
                            kill(Pid::from_raw(pid), Signal::SIGKILL).ok();
                        });
                    }
                    scope.spawn(move || (place, deed, command.map(patiently)))
                })
                .collect();
            if let Some(Crash { after_ms, in_order }) = crash {
                std::thread::sleep(Duration::from_millis(after_ms));
                if in_order {
                    assert_eq!(daemon.terminate(), 0, "the daemon ends in order");
                } else {
                    daemon.kill_9();
                }
            }
            running.into_iter().map(|thread| thread.join().expect("no panic")).collect()
        })
    }

    /// Brings what is expected up to what was answered, or not answered.
    fn settle(&mut self, place: usize, deed: &Deed, output: Option<&Output>, crashed: bool) {
        let answered = output.is_none_or(|output| output.status.success());
        self.tally.count(deed.name(), !answered && crashed);
        if let Some(output) = output {
            self.note(place, &format!("{deed:?}"), output);
        }
        let excused = crashed || matches!(deed, Deed::StopAndKillVmm { .. });
        if let (false, false, Some(output)) = (answered, excused, output) {
            self.fail(place, &format!("{}: {}", deed.name(), text(output)));
        }
        match *deed {
            Deed::Write(write) => {
                let fate = if answered { Fate::Acknowledged } else { Fate::InDoubt };
                if let Some(life) = &mut self.places[place].life {
                    life.written(&write, fate);
                }
            }
            Deed::Create if answered || self.exists(place) => {
                let life = self.new_life(place);
                self.begin(place, life, true);
            }
            Deed::Resume(number) if answered || self.exists(place) => {
                self.places[place].life = self.snapshots[number].clone();
            }
            Deed::Destroy => {
                if !answered && self.exists(place) {
                    let name = &self.places[place].name;
                    let again = patiently(self.command(&["destroy", name, "-y"]));
                    self.note(place, "destroy again", &again);
                    if !again.status.success() {
                        self.fail(place, &format!("destroy again: {}", text(&again)));
                    }
                }
                self.places[place].life = None;
            }
            Deed::Snapshot(number) => {
                if answered || self.has_snapshot(number) {
                    self.snapshots[number] = self.places[place].life.clone();
                }
            }
            Deed::Forget(number) => {
                if answered || !self.has_snapshot(number) {
                    self.snapshots[number] = None;
                }
            }
            Deed::Doze => self.wait_for_sleep(place),
            Deed::KillVmm | Deed::StopAndKillVmm { .. } => self.settle_killed(place),
            Deed::Create | Deed::Resume(_) | Deed::Stop | Deed::Start => {}
        }
    }

    fn exists(&self, place: usize) -> bool {
        self.daemon.state(&self.places[place].name).is_some()
    }

    fn has_snapshot(&self, number: usize) -> bool {
        let list = self.daemon.json(&["snapshot", "list"]);
        let name = snapshot_name(number);
        list.as_array().expect("a list").iter().any(|snapshot| snapshot["name"] == name.as_str())
    }

    fn state(&self, place: usize) -> String {
        self.daemon.state(&self.places[place].name).unwrap_or_else(|| "missing".to_owned())
    }

    fn wait_for_sleep(&mut self, place: usize) {
        if !until(|| matches!(self.state(place).as_str(), "warm" | "stopped")) {
            self.fail(place, &format!("idle for {DEADLINE:?} and still {}", self.state(place)));
        }
    }

    /// After its machine was killed a sandbox says that its memory is lost, unless it was asleep
    /// on disk by then. Either way everything else is there.
    fn settle_killed(&mut self, place: usize) {
        let name = self.places[place].name.clone();
        if !until(|| self.daemon.vmm_pid(&name).is_none() && self.state(place) == "stopped") {
            let what = format!("its VMM was killed and it is {}", self.state(place));
            return self.fail(place, &what);
        }
        let last = self.daemon.transition(&name);
        if last.to == "cold" {
            return;
        }
        if last.to != "stopped" || last.reason.is_empty() {
            return self.lose(place, &[format!("its VMM was killed; it says only {last:?}")]);
        }
        self.tally.said += 1;
        let output = patiently(self.script(place, &guest::look()));
        self.note(place, &format!("look after {:?}", last.reason), &output);
        let Some(mut life) = self.places[place].life.take() else { return };
        life.memory_is_lost();
        let wrong = life.judge_disk(&guest::seen(&String::from_utf8_lossy(&output.stdout)));
        self.places[place].life = Some(life.clone());
        if wrong.is_empty() {
            self.begin(place, life, false);
        } else {
            self.lose(place, &wrong);
        }
    }
}

fn until(mut reached: impl FnMut() -> bool) -> bool {
    let started = Instant::now();
    while started.elapsed() < DEADLINE {
        if reached() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    false
}
