//! The daemon, the sandboxes on it, and what each of them has to hold.

use std::process::{Command, Output};
use std::time::{Duration, Instant};

use bhatti_testkit::TestDaemon;

use crate::guest::{self, WORKER, WORKER_PATH};
use crate::life::Life;
use crate::tally::Tally;

/// How many named snapshots there are at once; one fewer than the quota.
pub(crate) const SNAPSHOTS: usize = 4;
/// Sandboxes fall asleep between the operations of a run, not only when told to.
const CONFIG: &str = "thermal:\n  warm_after: 3s\n  cold_after: 10s\n";
/// The most problems of one run; what follows the first few seldom says more.
pub(crate) const MOST_PROBLEMS: u64 = 5;

/// One place for a sandbox. Its name stays; sandboxes come and go.
pub(crate) struct Place {
    pub(crate) name: String,
    memory_mib: u32,
    blocks: usize,
    /// How many sandboxes there were here.
    serial: u32,
    /// `None`: nobody is there.
    pub(crate) life: Option<Life>,
    /// What was done to it, the latest last.
    pub(crate) history: Vec<String>,
}

/// Everything a run works on.
pub(crate) struct Stage {
    pub(crate) daemon: TestDaemon,
    pub(crate) seed: u64,
    pub(crate) places: Vec<Place>,
    pub(crate) snapshots: Vec<Option<Life>>,
    pub(crate) tally: Tally,
    pub(crate) started: Instant,
}

impl Stage {
    /// A daemon without sandboxes.
    pub(crate) fn new(seed: u64, sandboxes: usize) -> Self {
        let mut daemon = TestDaemon::start_with(CONFIG);
        daemon.keep_scratch(true);
        // What a freeze says whose VMM was killed under it; and before, while its guest was asked.
        daemon.allow_error("a paused machine does not go on");
        daemon.allow_error("stop sandbox: engine failed: the machine is not running");
        std::fs::write(daemon.scratch_path().join("worker.pl"), WORKER).expect("a file");
        let places = (0..sandboxes)
            .map(|number| Place {
                name: format!("s{number}"),
                // Two shapes, so that there are two golden snapshots; three amounts of memory.
                memory_mib: [160, 224][number % 2],
                blocks: [16, 48, 128][number % 3],
                serial: 0,
                life: None,
                history: Vec::new(),
            })
            .collect();
        Self {
            daemon,
            seed,
            places,
            snapshots: vec![None; SNAPSHOTS],
            tally: Tally::default(),
            started: Instant::now(),
        }
    }

    /// `bhatti` with these arguments, not started yet.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        self.daemon.prepare(Some(self.daemon.admin()), args)
    }

    /// A script in the guest of a place, not started yet.
    pub(crate) fn script(&self, place: usize, script: &str) -> Command {
        let name = &self.places[place].name;
        // Longer than the script waits for anything itself.
        self.command(&["exec", name, "--timeout", "90", "--", "bash", "-c", script])
    }

    /// `bhatti create` for a place, not started yet.
    pub(crate) fn create(&self, place: usize) -> Command {
        let Place { name, memory_mib, .. } = &self.places[place];
        let memory = memory_mib.to_string();
        let file = format!("{}:{WORKER_PATH}", self.daemon.scratch_path().join("worker.pl"));
        self.command(&["create", "--name", name, "--memory", &memory, "--file", &file])
    }

    /// What a sandbox that has just been made in a place will hold, once [`Self::begin`] worked.
    pub(crate) fn new_life(&mut self, place: usize) -> Life {
        let place = &mut self.places[place];
        place.serial += 1;
        Life::new(&format!("{}-{}", place.name, place.serial), place.blocks)
    }

    /// Lets a sandbox begin its life, with files on disk or only with what is in memory.
    pub(crate) fn begin(&mut self, place: usize, life: Life, disk: bool) {
        let script = guest::begin(&life, disk);
        let output = patiently(self.script(place, &script));
        self.note(place, "begin", &output);
        self.places[place].life = Some(life);
        if !output.status.success() {
            self.fail(place, &format!("the worker does not start: {}", text(&output)));
        }
    }

    /// Records what was done to a place.
    pub(crate) fn note(&mut self, place: usize, what: &str, output: &Output) {
        let at = self.started.elapsed().as_secs_f64();
        let code = output.status.code().unwrap_or(-1);
        let said = if code == 0 { String::new() } else { format!(": {}", text(output)) };
        let line = format!("{at:8.2}s cycle {}: {what}, exit {code}{said}", self.tally.cycles);
        self.places[place].history.push(line);
    }

    /// An operation did not work, and no crash is to blame. The sandbox is looked into like any
    /// other; this alone loses nothing.
    pub(crate) fn fail(&mut self, place: usize, what: &str) {
        self.tally.failed += 1;
        self.report("OPERATION FAILED", place, &[what.to_owned()]);
    }

    /// A sandbox does not hold what it has to. It is replaced, so that the run can go on.
    pub(crate) fn lose(&mut self, place: usize, wrong: &[String]) {
        self.tally.lost += 1;
        self.report("STATE LOST", place, wrong);
        patiently(self.command(&["destroy", &self.places[place].name, "-y"]));
        self.places[place].life = None;
    }

    /// Prints and keeps everything needed to look into a problem.
    fn report(&self, title: &str, place: usize, wrong: &[String]) {
        let Place { name, life, history, .. } = &self.places[place];
        let shown = |mut command: Command| match command.output() {
            Ok(output) => text(&output),
            Err(error) => error.to_string(),
        };
        let record = shown(self.command(&["--json", "inspect", name]));
        let list = shown(self.command(&["list"]));
        let explained = shown(self.script(place, &guest::explain()));
        let report = format!(
            "{title}: {name} in cycle {} after {:.1} s, seed {}\n  {}\nhistory:\n  {}\n\
             expected: {}\nrecord: {record}\nlist:\n{list}\nseen inside:\n{explained}\n\
             the daemon's log is {}\n",
            self.tally.cycles,
            self.started.elapsed().as_secs_f64(),
            self.seed,
            wrong.join("\n  "),
            history.join("\n  "),
            life.as_ref().map_or_else(|| "nobody there".to_owned(), Life::summary),
            self.daemon.log_file(),
        );
        eprintln!("\n{report}");
        let file = format!("problem-{}.txt", self.tally.problems());
        std::fs::write(self.daemon.scratch_path().join(file), report).expect("a report");
    }

    /// Ends everything and checks that nothing stays.
    pub(crate) fn finish(&mut self) {
        for place in 0..self.places.len() {
            let output = patiently(self.command(&["destroy", &self.places[place].name, "-y"]));
            self.note(place, "destroy", &output);
            if self.places[place].life.take().is_some() && !output.status.success() {
                self.fail(place, &format!("destroy at the end: {}", text(&output)));
            }
        }
        for number in 0..SNAPSHOTS {
            let name = snapshot_name(number);
            let output = patiently(self.command(&["snapshot", "delete", &name, "-y"]));
            if self.snapshots[number].take().is_some() && !output.status.success() {
                self.tally.failed += 1;
                eprintln!("OPERATION FAILED: snapshot delete {name}: {}", text(&output));
            }
        }
        self.daemon.assert_nothing_left();
        println!("nothing is left on the host");
    }
}

pub(crate) fn snapshot_name(number: usize) -> String {
    format!("snap{number}")
}

/// Everything a command printed.
pub(crate) fn text(output: &Output) -> String {
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text += &String::from_utf8_lossy(&output.stderr);
    text.trim_end().to_owned()
}

/// Runs a command; a rate limit is waited out, it is not what is tried here.
pub(crate) fn patiently(mut command: Command) -> Output {
    loop {
        let output = command.output().expect("bhatti runs");
        if output.status.success() || !text(&output).contains("rate limit exceeded") {
            return output;
        }
        std::thread::sleep(Duration::from_millis(500));
    }
}
