//! Taking layers out from under a paused machine's disk, after what they hold was copied up.
//!
//! ```text
//!  image ◀─ 0 ◀─ 1 ◀─ 2 ◀─ 3 ◀─ top         keep = 1
//!                └────┬────┘
//!                     ▼ what the top does not hold itself
//!  image ◀─ 0 ◀────────────── top           1, 2, 3 are in nobody's use
//! ```
//!
//! The VMM copies, in a job of its own, and only into the top: sealed layers are shared and are
//! never written. The watcher is asked in short steps, so a console or a kill does not wait for a
//! copy. The job does not complete by itself: a copy whose daemon has died changes nothing, and
//! the next who asks for the disk gives it up ([`crate::qmp::Qmp::disk`]). What was copied by then
//! stays in the top, says the same as what lies below, and is not copied again.
//!
//! The step that counts puts the top on what was kept. QEMU then writes the name of that file into
//! the top's header; it is told to write an empty one, so [`disk::check_overlay`] need not trust a
//! name in a file that the VMM can write.

use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::Duration;

use bhatti_engine::{EngineError, RootDisk};
use camino::{Utf8Path, Utf8PathBuf};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::cmdline::{IMAGE, layer_node, layer_set};
use crate::disk::{self, MAX_LAYERS, TopName};
use crate::launch::own_disk;
use crate::qmp::{Qmp, broken};
use crate::vm::Shared;
use crate::watcher::Command;
use bhatti_vmm::{blocking, file_error};

/// The node QEMU puts on top of the disk while a merge is not over.
pub(crate) const FILTER: &str = "merging";
const JOB: &str = "merge";
const STREAM: &str = "block-stream";

/// How long a merge may take whatever its size.
const LEAST_PATIENCE: Duration = Duration::from_secs(60);
/// Bytes a second that even a bad disk copies; a merge may take that much longer.
const SLOWEST: u64 = 4 << 20;
/// How long a job may take to end once it was told to; a piece of 512 KiB is on its way at most.
const END_DEADLINE: Duration = Duration::from_secs(10);
/// Between two looks at a job: as first, and at most.
const FIRST_LOOK: Duration = Duration::from_millis(1);
const LAST_LOOK: Duration = Duration::from_millis(50);

/// What the watcher is asked for.
pub(crate) enum Step {
    /// Begin to copy what lies above the first `keep` of so many layers.
    Start {
        top: String,
        layers: usize,
        keep: usize,
    },
    Look,
    /// Put the top on what was kept. Only after [`Progress::Copied`].
    Finish,
    /// Give it up.
    Cancel,
}

/// How far a merge is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    Copying,
    Copied,
    /// There is no job: all is done, or nothing was to do.
    Over,
}

/// See [`bhatti_engine::Vm::merge_disk`].
pub(crate) async fn merge(
    machine: Arc<Shared>,
    disk: RootDisk,
    keep: usize,
) -> Result<RootDisk, EngineError> {
    if keep >= disk.layers.len() {
        return Ok(disk);
    }
    let top = own_disk(&disk, &machine.dir)?;
    let layers = disk.layers.clone();
    let patience = blocking(move || patience(&layers)).await?;
    let start = Step::Start { top: top.node(), layers: disk.layers.len(), keep };
    if let Err(error) = copy(&machine, start, patience).await {
        if let Err(error) = ask(&machine, Step::Cancel).await {
            // It has ended; or whoever asks for the disk next gives the merge up.
            tracing::debug!(%error, dir = %machine.dir.path(), "cannot give up a merge of layers");
        }
        return Err(error);
    }
    blocking(move || {
        // Whoever starts from it next will ask the same.
        let path = &disk.file;
        let file = machine.dir.open_file(&top.file()).map_err(file_error("open", path))?;
        disk::check_overlay(&file, disk.bytes).map_err(file_error("use", path))?;
        let RootDisk { file, base, mut layers, bytes, format } = disk;
        layers.truncate(keep);
        Ok(RootDisk { file, base, layers, bytes, format })
    })
    .await
}

/// One merge, from its first step to its last.
async fn copy(machine: &Shared, start: Step, patience: Duration) -> Result<(), EngineError> {
    let deadline = Instant::now() + patience;
    let mut pause = FIRST_LOOK;
    let mut progress = ask(machine, start).await?;
    while progress == Progress::Copying {
        if Instant::now() >= deadline {
            let seconds = patience.as_secs();
            return Err(EngineError::Timeout { action: "merge disk layers", seconds });
        }
        sleep(pause).await;
        pause = (pause * 2).min(LAST_LOOK);
        progress = ask(machine, Step::Look).await?;
    }
    match progress {
        Progress::Copied => ask(machine, Step::Finish).await.map(drop),
        Progress::Copying | Progress::Over => Ok(()),
    }
}

async fn ask(machine: &Shared, step: Step) -> Result<Progress, EngineError> {
    machine.ask(|reply| Command::Merge(step, reply)).await
}

/// How long copying these may take. An upper bound: what is kept counts too.
fn patience(layers: &[Utf8PathBuf]) -> Result<Duration, EngineError> {
    let mut bytes = 0u64;
    for layer in layers {
        let metadata = std::fs::metadata(layer).map_err(file_error("use disk layer", layer))?;
        bytes = bytes.saturating_add(metadata.blocks().saturating_mul(512));
    }
    Ok(LEAST_PATIENCE + Duration::from_secs(bytes / SLOWEST))
}

impl Step {
    pub(crate) async fn take(self, qmp: &mut Qmp) -> Result<Progress, EngineError> {
        match self {
            Self::Start { top, layers, keep } => start(qmp, &top, layers, keep).await,
            Self::Look => look(qmp).await,
            Self::Finish => finish(qmp).await.map(|()| Progress::Over),
            Self::Cancel => abandon(qmp).await.map(|()| Progress::Over),
        }
    }
}

async fn start(
    qmp: &mut Qmp,
    top: &str,
    layers: usize,
    keep: usize,
) -> Result<Progress, EngineError> {
    abandon(qmp).await?;
    let on_top = qmp.disk().await?.node;
    if on_top != top {
        return Err(broken(STREAM, &format!("the machine's disk is {on_top}, not {top}")));
    }
    let below = Graph::of(qmp).await?.below(top);
    let Some(base) = base_of(&below, layers, keep)? else { return Ok(Progress::Over) };
    let mut arguments = json!({
        "job-id": JOB, "device": top, "filter-node-name": FILTER,
        "auto-finalize": false, "auto-dismiss": false,
    });
    // Without them all is copied and the top stands on nothing.
    if let Base::Node(node) = base {
        arguments["base-node"] = json!(node);
        arguments["backing-file"] = json!("");
    }
    qmp.execute(STREAM, arguments).await?;
    Ok(Progress::Copying)
}

/// What a disk is to stand on.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Base<'a> {
    Node(&'a str),
    /// It is complete by itself.
    Nothing,
}

/// What the top is to stand on, of the nodes below it, the lowest first; `None` if it does so
/// already. The record names `layers` of them.
///
/// There are fewer if a merge was done and nobody lived to record it. Which ones are missing is
/// not known then, so everything is copied: the answer is right for any `keep`.
fn base_of(below: &[String], layers: usize, keep: usize) -> Result<Option<Base<'_>>, EngineError> {
    let (image, nodes) = match below.split_first() {
        Some((first, rest)) if first == IMAGE => (Base::Node(IMAGE), rest),
        _ => (Base::Nothing, below),
    };
    if nodes.len() > layers {
        let message = format!("the machine's disk lies on {} layers, not {layers}", nodes.len());
        return Err(broken(STREAM, &message));
    }
    let kept = if nodes.len() == layers { keep } else { 0 };
    Ok(match kept.checked_sub(1) {
        _ if kept >= nodes.len() => None,
        None => Some(image),
        Some(last) => nodes.get(last).map(|node| Base::Node(node)),
    })
}

async fn look(qmp: &mut Qmp) -> Result<Progress, EngineError> {
    match job(qmp).await? {
        Some(job) if job.status == "pending" => Ok(Progress::Copied),
        Some(job) if job.status == "concluded" => Err(job.failure()),
        Some(_) => Ok(Progress::Copying),
        None => Err(broken(STREAM, "its job is gone")),
    }
}

async fn finish(qmp: &mut Qmp) -> Result<(), EngineError> {
    qmp.execute("job-finalize", json!({ "id": JOB })).await?;
    let ended = until_over(qmp).await?;
    qmp.execute("job-dismiss", json!({ "id": JOB })).await?;
    if let Some(job) = ended.filter(|job| job.error.is_some()) {
        return Err(job.failure());
    }
    // Where the copies are is known to the VMM's cache only: killed now, it would leave a top
    // without them. Stopping what stands writes it out.
    qmp.stop().await?;
    release(qmp).await
}

/// Gives up whatever is left of a merge. Nothing to do is done.
pub(crate) async fn abandon(qmp: &mut Qmp) -> Result<(), EngineError> {
    let Some(found) = job(qmp).await? else { return Ok(()) };
    if found.status != "concluded"
        && let Err(error) = qmp.execute("job-cancel", json!({ "id": JOB })).await
        && qmp.is_broken()
    {
        // A mere refusal says that it is about to end by itself.
        return Err(error);
    }
    if until_over(qmp).await?.is_some() {
        qmp.execute("job-dismiss", json!({ "id": JOB })).await?;
    }
    Ok(())
}

/// Waits until the job is over and only to be dismissed; `None` if it is gone.
async fn until_over(qmp: &mut Qmp) -> Result<Option<Job>, EngineError> {
    let deadline = Instant::now() + END_DEADLINE;
    loop {
        match job(qmp).await? {
            Some(job) if job.status != "concluded" => {}
            over => return Ok(over),
        }
        if Instant::now() >= deadline {
            let seconds = END_DEADLINE.as_secs();
            return Err(EngineError::Timeout { action: "end a merge of layers", seconds });
        }
        sleep(FIRST_LOOK).await;
    }
}

/// A job, as the VMM tells of it.
struct Job {
    status: String,
    error: Option<String>,
}

impl Job {
    fn failure(&self) -> EngineError {
        broken(STREAM, self.error.as_deref().unwrap_or("it was cancelled"))
    }
}

/// Ours, if there is one.
async fn job(qmp: &mut Qmp) -> Result<Option<Job>, EngineError> {
    let jobs = qmp.execute("query-jobs", json!({})).await?;
    let ours = jobs.as_array().and_then(|jobs| jobs.iter().find(|job| job["id"] == JOB));
    let text = |value: &Value| value.as_str().map(str::to_owned);
    Ok(ours.map(|job| Job {
        status: text(&job["status"]).unwrap_or_default(),
        error: text(&job["error"]),
    }))
}

/// Has the VMM close what its disk does not stand on any more. What cannot be closed costs it a
/// descriptor and nobody anything else.
async fn release(qmp: &mut Qmp) -> Result<(), EngineError> {
    let top = qmp.disk().await?.node;
    let graph = Graph::of(qmp).await?;
    let used = graph.below(&top);
    let ours = graph.nodes.iter().map(|(_, name)| name);
    let unused = ours.filter(|name| **name != top && !used.contains(name));
    let mut unused: Vec<Layer> = unused.filter_map(|name| Layer::of(name)).collect();
    // One that another stands on cannot be closed.
    unused.sort_unstable_by(|a, b| b.cmp(a));
    for layer in unused {
        let closed = qmp.execute("blockdev-del", json!({ "node-name": layer.node() })).await;
        match (closed, layer) {
            (Err(error), _) if qmp.is_broken() => return Err(error),
            (Err(error), _) => tracing::warn!(%error, "a VMM keeps a merged layer open"),
            (Ok(_), Layer::Given(number)) => qmp.close_set_for_good(layer_set(number)).await?,
            (Ok(_), Layer::Made(_)) => {}
        }
    }
    Ok(())
}

/// A layer by what its node is called; a later one is greater.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Layer {
    /// The VMM was started with it.
    Given(usize),
    /// It was the top, in this VMM's life.
    Made(TopName),
}

impl Layer {
    fn of(node: &str) -> Option<Self> {
        let given = (0..MAX_LAYERS).find(|number| layer_node(*number) == node);
        let made = || TopName::of(Utf8Path::new(&format!("{node}.qcow2")));
        given.map(Self::Given).or_else(|| made().map(Self::Made))
    }

    fn node(&self) -> String {
        match self {
            Self::Given(number) => layer_node(*number),
            Self::Made(name) => name.node(),
        }
    }
}

/// Which block node stands on which.
struct Graph {
    nodes: Vec<(u64, String)>,
    /// Who stands, and on what.
    backing: Vec<(u64, u64)>,
}

impl Graph {
    // The other command that lists nodes repeats the whole chain for each of them.
    async fn of(qmp: &mut Qmp) -> Result<Self, EngineError> {
        const QUERY: &str = "x-debug-query-block-graph";
        let graph = qmp.execute(QUERY, json!({})).await?;
        Self::read(&graph).ok_or_else(|| broken(QUERY, "no graph"))
    }

    fn read(graph: &Value) -> Option<Self> {
        let node = |node: &Value| Some((node["id"].as_u64()?, node["name"].as_str()?.to_owned()));
        let stands = |edge: &&Value| edge["name"] == "backing";
        let edge = |edge: &Value| Some((edge["parent"].as_u64()?, edge["child"].as_u64()?));
        Some(Self {
            nodes: graph["nodes"].as_array()?.iter().filter_map(node).collect(),
            backing: graph["edges"].as_array()?.iter().filter(stands).filter_map(edge).collect(),
        })
    }

    /// What a node stands on, the lowest first.
    fn below(&self, node: &str) -> Vec<String> {
        let mut chain = Vec::new();
        let mut at = self.nodes.iter().find(|(_, name)| name == node).map(|(id, _)| *id);
        // No longer than the image and all layers a disk can have: it is the VMM's word.
        while let Some(id) = at
            && chain.len() <= MAX_LAYERS + 1
        {
            at = self.backing.iter().find(|(parent, _)| *parent == id).map(|(_, child)| *child);
            let name = self.nodes.iter().find(|(id, _)| at == Some(*id)).map(|(_, name)| name);
            chain.extend(name.cloned());
        }
        chain.reverse();
        chain
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn what_is_kept_stays_below() {
        let disk = names(&["base", "layer-0", "layer-1", "root", "root-1"]);
        let base = |keep| base_of(&disk, 4, keep).unwrap();
        assert_eq!(base(0), Some(Base::Node("base")));
        assert_eq!(base(1), Some(Base::Node("layer-0")));
        assert_eq!(base(3), Some(Base::Node("root")));
        assert_eq!(base(4), None);
        let complete = names(&["root", "root-1"]);
        assert_eq!(base_of(&complete, 2, 0).unwrap(), Some(Base::Nothing));
        assert_eq!(base_of(&complete, 2, 1).unwrap(), Some(Base::Node("root")));
    }

    #[test]
    fn after_an_unheard_merge_nothing_is_taken_for_kept() {
        let disk = names(&["base", "layer-0", "root"]);
        for keep in 0..4 {
            assert_eq!(base_of(&disk, 4, keep).unwrap(), Some(Base::Node("base")), "{keep}");
        }
        assert_eq!(base_of(&disk[..1], 4, 2).unwrap(), None, "it was done already");
        assert!(base_of(&disk, 1, 0).is_err(), "more than anybody knows of");
    }

    #[test]
    fn a_graph_is_followed_from_the_top() {
        let graph = |edges: &[(u64, u64, &str)]| {
            let edge = |(parent, child, name): &(u64, u64, &str)| json!({ "parent": parent, "child": child, "name": name });
            let node =
                |(id, name): (u64, &str)| json!({ "id": id, "type": "block-driver", "name": name });
            let nodes = [(1, "root"), (2, "layer-0"), (3, "base"), (4, "layer-1"), (5, "#block7")];
            Graph::read(&json!({
                "nodes": nodes.map(node),
                "edges": edges.iter().map(edge).collect::<Vec<_>>(),
            }))
            .unwrap()
        };
        let plain = [(1, 2, "backing"), (2, 3, "backing"), (4, 2, "backing"), (1, 5, "file")];
        assert_eq!(graph(&plain).below("root"), names(&["base", "layer-0"]));
        assert_eq!(graph(&plain).below("layer-9"), names(&[]));
        let circle = graph(&[(1, 2, "backing"), (2, 1, "backing")]);
        assert!(circle.below("root").len() <= MAX_LAYERS + 3, "a VMM may say anything");
        assert!(Graph::read(&json!({ "nodes": 1 })).is_none());
    }

    #[test]
    fn later_layers_are_greater() {
        let order = ["layer-0", "layer-9", "layer-10", "root", "root-2", "root-10"];
        let layers: Vec<_> = order.iter().map(|name| Layer::of(name).unwrap()).collect();
        assert!(layers.is_sorted());
        assert!(layers.iter().zip(order).all(|(layer, name)| layer.node() == name));
        assert_eq!(Layer::of("base"), None);
        assert_eq!(Layer::of("#block7"), None);
        assert_eq!(Layer::of(FILTER), None);
    }
}
