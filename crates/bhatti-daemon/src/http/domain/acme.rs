//! A certificate a name, from an authority that speaks ACME, when it is first asked for.
//!
//! ```text
//!  provide ─▶ at hand? ─▶ being made? ─▶ order ─▶ proof on port 80 ─▶ file ─▶ shelf
//! ```
//!
//! Promises:
//! - All who wait for a name wait for one order, which goes on when they do not wait any longer.
//! - Orders are few and fairly shared ([`Pace`]), and after a failure of one the next for that name is
//!   not before a minute, two minutes, … an hour: authorities count failures too. Renewals are not
//!   counted with those for new names.
//! - What cannot be renewed is shown on, tried again, and said in an event each time.
//! - A certificate is on the disk, with its key, before it is shown; a crash leaves the former one.
//! - What another authority has issued is left alone.

use std::collections::HashMap;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use bhatti_lifecycle::{Events, Tasks, chain};
use bhatti_types::EventKind;
use camino::{Utf8Path, Utf8PathBuf};
use instant_acme::{
    Account, AccountCredentials, AuthorizationStatus, ChallengeType, Identifier, NewAccount,
    NewOrder, OrderStatus, RetryPolicy,
};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tokio::sync::{Notify, watch};
use tokio::time::timeout;

use super::pace::{Owner, Pace};
use super::shelf::{CertificateError, Shelf, certified, validity};

/// How long a handshake waits for a certificate. Browsers wait about as long.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long an order may take.
const ORDER: Duration = Duration::from_secs(180);
/// How often it is asked for, and how long, until the authority has made up its mind.
const POLL: RetryPolicy = RetryPolicy::new()
    .initial_delay(Duration::from_millis(500))
    .backoff(1.5)
    .timeout(Duration::from_secs(75));
/// How often it is looked at least for what has to be renewed, and at most.
const LOOK: Duration = Duration::from_secs(3600);
const LOOK_AT_MOST: Duration = Duration::from_secs(1);
/// How long after a first failure, and after many.
const AGAIN: Duration = Duration::from_secs(60);
const AGAIN_AT_MOST: Duration = Duration::from_secs(3600);
/// And at least while there is a certificate still, of which a quarter of its time is left for it.
const AGAIN_IN_TIME: Duration = Duration::from_secs(5);
/// From how many names on those that failed long ago are forgotten.
const MANY: usize = 1024;
/// Where the account is, with its key.
const ACCOUNT: &str = "account.json";
/// What the name of a file begins with until it is whole.
const NEW: &str = ".new-";

/// Who issues certificates, and to whom.
#[derive(Clone, Debug)]
pub(super) struct Authority {
    pub(super) email: String,
    pub(super) directory: String,
    pub(super) ca: Option<Utf8PathBuf>,
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
enum OrderError {
    #[error("the authority refused, or was not reached")]
    Authority(#[from] instant_acme::Error),
    #[error("the authority offers no way to prove the name over HTTP")]
    NoChallenge,
    #[error("the authority did not find the proof: does port 80 of the name lead here?")]
    NotProved,
    #[error("too many certificates were ordered lately")]
    TooMany,
    #[error("the order took longer than {} s", ORDER.as_secs())]
    Late,
    #[error("what the authority sent is no certificate")]
    Unusable(#[from] CertificateError),
    #[error("failed to write {path}")]
    Write {
        path: Utf8PathBuf,
        #[source]
        source: std::io::Error,
    },
}

/// What is known of a name without a certificate.
enum Progress {
    /// The other end goes with the order.
    Making(watch::Receiver<()>),
    Failed {
        until: Instant,
        times: u32,
    },
}

/// From when to when a certificate is good.
type Good = (SystemTime, SystemTime);

/// What became of a renewal.
struct Failure {
    until: Instant,
    times: u32,
}

/// The client of one authority.
pub(super) struct Acme {
    authority: Authority,
    dir: Utf8PathBuf,
    shelf: Arc<Shelf>,
    tasks: Tasks,
    account: tokio::sync::Mutex<Option<Account>>,
    /// From when on somebody serves.
    events: OnceLock<Events>,
    /// What is answered to challenges, by token.
    proofs: Mutex<HashMap<String, String>>,
    names: Mutex<HashMap<String, Progress>>,
    /// From when to when what is on the shelf is good.
    held: Mutex<HashMap<String, Good>>,
    /// There is more to renew, sooner or later.
    more: Notify,
    pace: Pace,
}

impl Acme {
    /// Takes what this authority has issued before.
    pub(super) fn open(
        authority: Authority,
        data_dir: &Utf8Path,
        shelf: Arc<Shelf>,
        tasks: Tasks,
    ) -> Result<Arc<Self>, CertificateError> {
        let place: String = Sha256::digest(&authority.directory)
            .iter()
            .take(8)
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let dir = data_dir.join("certs").join(place);
        let fail = |source| CertificateError::Store { path: dir.clone(), source };
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(fail)?;
        // Whom not to trust is better told at the start than at the first visitor.
        client(&authority)?;
        let acme = Arc::new(Self {
            authority,
            dir: dir.clone(),
            shelf,
            tasks,
            account: tokio::sync::Mutex::default(),
            events: OnceLock::new(),
            proofs: Mutex::default(),
            names: Mutex::default(),
            held: Mutex::default(),
            more: Notify::new(),
            pace: Pace::new(),
        });
        for entry in dir.read_dir_utf8().map_err(fail)? {
            let path = entry.map_err(fail)?.into_path();
            let file = path.file_name().unwrap_or_default();
            if file.starts_with(NEW) {
                // Left by a crash, and there is a key in it.
                std::fs::remove_file(&path).map_err(fail)?;
                continue;
            }
            let Some(name) = file.strip_suffix(".pem") else { continue };
            let taken = std::fs::read(&path).map_err(fail).and_then(|pem| acme.show(name, &pem));
            if let Err(error) = taken {
                tracing::warn!(%path, error = chain(&error), "not used as a certificate");
            }
        }
        Ok(acme)
    }

    /// Returns when there is a certificate for `name`, its order has failed, or the wait was too long.
    pub(super) async fn provide(self: &Arc<Self>, name: &str, owner: Owner) {
        if let Some(mut made) = self.prepare(name, owner) {
            // Its end is that the other side is dropped.
            drop(timeout(PATIENCE, made.changed()).await);
        }
    }

    /// Has one made, unless there is one or it failed lately; what ends with that.
    pub(super) fn prepare(
        self: &Arc<Self>,
        name: &str,
        owner: Owner,
    ) -> Option<watch::Receiver<()>> {
        if self.shelf.has(name) {
            return None;
        }
        let mut names = lock(&self.names);
        let times = match names.get(name) {
            Some(Progress::Making(made)) => return Some(made.clone()),
            Some(Progress::Failed { until, .. }) if Instant::now() < *until => return None,
            Some(Progress::Failed { times, .. }) => *times,
            None => 0,
        };
        Some(self.begin(name, owner, times, &mut names))
    }

    /// Orders, as a task of its own.
    fn begin(
        self: &Arc<Self>,
        name: &str,
        owner: Owner,
        times: u32,
        names: &mut HashMap<String, Progress>,
    ) -> watch::Receiver<()> {
        if names.len() >= MANY {
            let now = Instant::now();
            names.retain(|_, known| match known {
                Progress::Making(_) => true,
                Progress::Failed { until, .. } => now < *until + AGAIN_AT_MOST,
            });
        }
        let (tell, made) = watch::channel(());
        names.insert(name.to_owned(), Progress::Making(made.clone()));
        let (acme, name) = (Arc::clone(self), name.to_owned());
        self.tasks.spawn("certificate", move |stop| async move {
            let outcome = tokio::select! {
                () = stop.cancelled() => return,
                outcome = acme.order_first(&name, &owner) => outcome,
            };
            let again = again(times, Duration::ZERO);
            acme.report(&name, &owner, &outcome, again, false);
            let mut names = lock(&acme.names);
            if outcome.is_ok() {
                names.remove(&name);
            } else {
                let until = Instant::now() + again;
                names.insert(name, Progress::Failed { until, times: times + 1 });
            }
            drop(tell);
        });
        made
    }

    /// One for a name that had none.
    async fn order_first(&self, name: &str, owner: &Owner) -> Result<(), OrderError> {
        if !self.pace.allow(owner) {
            return Err(OrderError::TooMany);
        }
        self.order(name, owner).await
    }

    /// Says what became of an order, to who runs this and for later.
    fn report(
        &self,
        name: &str,
        owner: &Owner,
        outcome: &Result<(), OrderError>,
        again: Duration,
        renewal: bool,
    ) {
        let (kind, meta) = match outcome {
            Ok(()) => {
                tracing::info!(name, renewal, "a certificate was issued");
                let meta = json!({ "name": name, "renewal": renewal });
                (EventKind::CertificateIssued, meta)
            }
            Err(error) => {
                let (error, again_s) = (chain(error), again.as_secs());
                tracing::warn!(name, error, again_s, renewal, "no certificate was issued");
                let meta =
                    json!({ "name": name, "error": error, "again_s": again_s, "renewal": renewal });
                (EventKind::CertificateFailed, meta)
            }
        };
        if let Some(events) = self.events.get() {
            events.record(kind, owner.as_ref(), None, meta);
        }
    }

    async fn order(&self, name: &str, owner: &Owner) -> Result<(), OrderError> {
        let _turn = self.pace.turn(owner).await.ok_or(OrderError::Late)?;
        let mut proofs = Proofs { acme: self, tokens: Vec::new() };
        let made = timeout(ORDER, self.make(name, &mut proofs)).await;
        let pem = made.map_err(|_| OrderError::Late)??;
        self.write(&format!("{name}.pem"), pem.as_bytes())?;
        Ok(self.show(name, pem.as_bytes())?)
    }

    /// Key and chain for `name`, in PEM.
    async fn make(&self, name: &str, proofs: &mut Proofs<'_>) -> Result<String, OrderError> {
        let identifiers = [Identifier::Dns(name.to_owned())];
        let wanted = NewOrder::new(&identifiers);
        let mut order = match self.account().await?.new_order(&wanted).await {
            Err(error) if is_stranger(&error) => {
                self.forget_account().await?;
                self.account().await?.new_order(&wanted).await?
            }
            order => order?,
        };
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization = authorization?;
            match authorization.status {
                AuthorizationStatus::Pending => {}
                AuthorizationStatus::Valid => continue,
                _ => return Err(OrderError::NotProved),
            }
            let challenge = authorization.challenge(ChallengeType::Http01);
            let mut challenge = challenge.ok_or(OrderError::NoChallenge)?;
            proofs.put(&challenge.token, challenge.key_authorization().as_str());
            challenge.set_ready().await?;
        }
        if order.poll_ready(&POLL).await? != OrderStatus::Ready {
            return Err(OrderError::NotProved);
        }
        let key = order.finalize().await?;
        let chain = order.poll_certificate(&POLL).await?;
        Ok(format!("{key}\n{chain}"))
    }

    async fn account(&self) -> Result<Account, OrderError> {
        let mut account = self.account.lock().await;
        if let Some(account) = &*account {
            return Ok(account.clone());
        }
        Ok(account.insert(self.log_in().await?).clone())
    }

    /// The authority does not know it any more: one that is new may do.
    async fn forget_account(&self) -> Result<(), OrderError> {
        let mut account = self.account.lock().await;
        *account = None;
        let path = self.dir.join(ACCOUNT);
        match std::fs::remove_file(&path) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                Err(OrderError::Write { path, source })
            }
            _ => Ok(()),
        }
    }

    /// The account there is, or a new one.
    async fn log_in(&self) -> Result<Account, OrderError> {
        let client = client(&self.authority)?;
        let stored = std::fs::read(self.dir.join(ACCOUNT)).ok();
        let stored =
            stored.and_then(|json| serde_json::from_slice::<AccountCredentials>(&json).ok());
        if let Some(credentials) = stored {
            return Ok(client.from_credentials(credentials).await?);
        }
        let contact = format!("mailto:{}", self.authority.email);
        let new = NewAccount {
            contact: &[&contact],
            terms_of_service_agreed: true,
            only_return_existing: false,
        };
        let directory = self.authority.directory.clone();
        let (account, credentials) = client.create(&new, directory, None).await?;
        let json = serde_json::to_vec(&credentials).map_err(std::io::Error::other);
        let path = self.dir.join(ACCOUNT);
        let json = json.map_err(|source| OrderError::Write { path, source })?;
        self.write(ACCOUNT, &json)?;
        Ok(account)
    }

    /// Puts a file in its place whole, and on the medium.
    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), OrderError> {
        let (path, new) = (self.dir.join(name), self.dir.join(format!("{NEW}{name}")));
        let write = || {
            let mut options = std::fs::OpenOptions::new();
            let mut file =
                options.write(true).create(true).truncate(true).mode(0o600).open(&new)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            std::fs::rename(&new, &path)?;
            std::fs::File::open(&self.dir)?.sync_all()
        };
        write().map_err(|source| OrderError::Write { path: path.clone(), source })
    }

    fn show(&self, name: &str, pem: &[u8]) -> Result<(), CertificateError> {
        let path = self.dir.join(format!("{name}.pem"));
        let certified = certified(pem, pem, &path, &path)?;
        let leaf = certified.end_entity_cert().map_err(CertificateError::Setup)?;
        let good = validity(leaf)
            .ok_or(CertificateError::Pem { path: path.clone(), what: "certificate with dates" })?;
        if good.1 < SystemTime::now() {
            return Err(CertificateError::Expired { path });
        }
        self.shelf.put(name, certified);
        lock(&self.held).insert(name.to_owned(), good);
        self.more.notify_one();
        Ok(())
    }

    /// What a challenge is answered with.
    pub(super) fn proof(&self, token: &str) -> Option<String> {
        lock(&self.proofs).get(token).cloned()
    }

    /// Renews whatever is in the last third of its time, if it is still `wanted`; what is not, is
    /// not shown any more once it has expired. What happens is said to `events`. Never ends.
    pub(super) async fn renew(&self, events: Events, wanted: impl Fn(&str) -> Option<Owner>) {
        if self.events.set(events).is_err() {
            tracing::error!("certificates are being renewed already");
            return;
        }
        let mut failed: HashMap<String, Failure> = HashMap::new();
        loop {
            let mut held: Vec<_> =
                lock(&self.held).iter().map(|(n, good)| (n.clone(), *good)).collect();
            held.sort_by_key(|(_, good)| good.1);
            failed.retain(|name, _| held.iter().any(|(held, _)| held == name));
            let mut next = LOOK;
            for (name, good) in held {
                let known = failed.get(&name);
                let waits = known.map(|f| f.until.saturating_duration_since(Instant::now()));
                let wait = due_in(good, SystemTime::now()).max(waits.unwrap_or_default());
                if !wait.is_zero() {
                    next = next.min(wait);
                    continue;
                }
                let Some(owner) = wanted(&name) else {
                    self.put_away(&name, good);
                    continue;
                };
                let outcome = self.order(&name, &owner).await;
                let times = known.map_or(0, |failure| failure.times);
                let left = good.1.duration_since(SystemTime::now()).unwrap_or_default();
                let again = again(times, left);
                self.report(&name, &owner, &outcome, again, true);
                if outcome.is_ok() {
                    failed.remove(&name);
                } else {
                    let until = Instant::now() + again;
                    failed.insert(name, Failure { until, times: times + 1 });
                    next = next.min(again);
                }
            }
            // Told of another, or not; it is looked at all of them again.
            drop(timeout(next.max(LOOK_AT_MOST), self.more.notified()).await);
        }
    }

    /// Forgets what nobody wants and nobody would take any more.
    fn put_away(&self, name: &str, good: Good) {
        if good.1 < SystemTime::now() {
            self.shelf.take(name);
            lock(&self.held).remove(name);
            drop(std::fs::remove_file(self.dir.join(format!("{name}.pem"))));
        }
    }
}

/// How long until a certificate is in the last third of its time.
fn due_in((from, to): Good, now: SystemTime) -> Duration {
    let third = to.duration_since(from).unwrap_or_default() / 3;
    (to - third).duration_since(now).unwrap_or_default()
}

/// How long until another try after one that failed, with so much left of a certificate there is. One
/// that is good for a few days only is tried for more often.
fn again(times: u32, left: Duration) -> Duration {
    let again = AGAIN.saturating_mul(1 << times.min(10)).min(AGAIN_AT_MOST);
    if left.is_zero() { again } else { again.min((left / 4).max(AGAIN_IN_TIME)) }
}

/// Whether the authority does not know our account.
fn is_stranger(error: &instant_acme::Error) -> bool {
    let instant_acme::Error::Api(problem) = error else { return false };
    problem.r#type.as_deref().is_some_and(|kind| kind.ends_with(":accountDoesNotExist"))
}

/// Proofs that are shown as long as this is there.
struct Proofs<'a> {
    acme: &'a Acme,
    tokens: Vec<String>,
}

impl Proofs<'_> {
    fn put(&mut self, token: &str, proof: &str) {
        lock(&self.acme.proofs).insert(token.to_owned(), proof.to_owned());
        self.tokens.push(token.to_owned());
    }
}

impl Drop for Proofs<'_> {
    fn drop(&mut self) {
        let mut proofs = lock(&self.acme.proofs);
        for token in &self.tokens {
            proofs.remove(token);
        }
    }
}

fn client(authority: &Authority) -> Result<instant_acme::AccountBuilder, CertificateError> {
    let client = match &authority.ca {
        Some(ca) => Account::builder_with_root(ca),
        None => Account::builder(),
    };
    client.map_err(|source| {
        let directory = authority.directory.clone();
        CertificateError::Authority { directory, source }
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing in there can be left half changed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bhatti_types::UserId;

    /// Of an authority that is nowhere.
    fn open(data_dir: &tempfile::TempDir) -> Arc<Acme> {
        let directory = "https://127.0.0.1:1/directory".to_owned();
        let authority = Authority { email: "a@example.com".to_owned(), directory, ca: None };
        let data_dir = Utf8Path::from_path(data_dir.path()).expect("a path of ours");
        Acme::open(authority, data_dir, Arc::default(), Tasks::default()).expect("a client")
    }

    #[tokio::test]
    async fn a_key_that_a_crash_has_left_goes() {
        let dir = tempfile::tempdir().expect("a directory");
        let left = open(&dir).dir.join(".new-dev.box.example.pem");
        std::fs::write(&left, "half of a key").expect("written");
        open(&dir);
        assert!(!left.exists());
    }

    #[tokio::test]
    async fn who_publishes_a_lot_neither_fills_the_memory_nor_stops_renewals() {
        let dir = tempfile::tempdir().expect("a directory");
        let acme = open(&dir);
        let owner = Some(UserId::random());
        while acme.pace.allow(&owner) {}
        for number in 0..2 * MANY {
            if let Some(mut made) = acme.prepare(&format!("a{number}.box.example"), owner.clone()) {
                drop(made.changed().await);
            }
            if number == MANY / 2 {
                let long_ago = Instant::now().checked_sub(2 * AGAIN_AT_MOST).expect("it was up");
                for known in lock(&acme.names).values_mut() {
                    *known = Progress::Failed { until: long_ago, times: 1 };
                }
            }
        }
        let known = lock(&acme.names).len();
        assert!(known < 2 * MANY - MANY / 2, "{known}");
        let renewed = acme.order("dev.box.example", &owner).await;
        assert!(matches!(renewed, Err(OrderError::Authority(_))), "{renewed:?}");
    }

    #[test]
    fn renewals_are_tried_in_time_and_not_too_often() {
        let (now, day) = (SystemTime::now(), Duration::from_secs(86_400));
        let good = (now, now + 90 * day);
        assert_eq!(due_in(good, now), 60 * day);
        assert_eq!(due_in(good, now + 61 * day), Duration::ZERO);
        assert_eq!(due_in(good, now + 100 * day), Duration::ZERO);
        let tries = (0..9).map(|times| again(times, 30 * day).as_secs()).collect::<Vec<_>>();
        assert_eq!(tries, [60, 120, 240, 480, 960, 1920, 3600, 3600, 3600]);
        assert_eq!(again(9, Duration::from_secs(60)).as_secs(), 15, "it is about to expire");
        assert_eq!(again(9, Duration::from_secs(1)), AGAIN_IN_TIME);
        assert_eq!(again(9, Duration::ZERO), AGAIN_AT_MOST, "it has");
    }
}
