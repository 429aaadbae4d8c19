//! A certificate a name, from an authority that speaks ACME, when it is first asked for.
//!
//! ```text
//!  provide ─▶ at hand? ─▶ being made? ─▶ order ─▶ proof on port 80 ─▶ file ─▶ shelf
//! ```
//!
//! Promises:
//! - All who wait for a name wait for one order, which goes on when they do not wait any longer.
//! - Orders are few: two at a time, some twenty an hour for names that have none yet, and after a
//!   failure not before a minute, two minutes, … an hour. Authorities count failures too. Renewals
//!   do not wait for those who publish a lot.
//! - A certificate is on the disk, with its key, before it is shown; a crash leaves the former one.
//! - What another authority has issued is left alone.

use std::collections::HashMap;
use std::io::Write as _;
use std::num::NonZeroU32;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use bhatti_lifecycle::{Tasks, chain};
use camino::{Utf8Path, Utf8PathBuf};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use instant_acme::{
    Account, AccountCredentials, AuthorizationStatus, ChallengeType, Identifier, NewAccount,
    NewOrder, OrderStatus, RetryPolicy,
};
use sha2::{Digest as _, Sha256};
use tokio::sync::{OnceCell, Semaphore, watch};
use tokio::time::{sleep, timeout};

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
const MAX_ORDERS: usize = 2;
const BURST: u32 = 20;
/// How often it is looked for what has to be renewed.
const LOOK: Duration = Duration::from_secs(3600);
/// How long after a first failure, and after many.
const AGAIN: Duration = Duration::from_secs(60);
const AGAIN_AT_MOST: Duration = Duration::from_secs(3600);
/// From how many names on those that failed long ago are forgotten.
const MANY: usize = 1024;
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

/// The client of one authority.
pub(super) struct Acme {
    authority: Authority,
    dir: Utf8PathBuf,
    shelf: Arc<Shelf>,
    tasks: Tasks,
    account: OnceCell<Account>,
    /// What is answered to challenges, by token.
    proofs: Mutex<HashMap<String, String>>,
    names: Mutex<HashMap<String, Progress>>,
    /// From when to when what is on the shelf is good.
    held: Mutex<HashMap<String, (SystemTime, SystemTime)>>,
    orders: Semaphore,
    pace: DefaultDirectRateLimiter,
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
        let burst = NonZeroU32::new(BURST).expect("it is not zero");
        let acme = Arc::new(Self {
            authority,
            dir: dir.clone(),
            shelf,
            tasks,
            account: OnceCell::new(),
            proofs: Mutex::default(),
            names: Mutex::default(),
            held: Mutex::default(),
            orders: Semaphore::new(MAX_ORDERS),
            pace: RateLimiter::direct(Quota::per_hour(burst)),
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
    pub(super) async fn provide(self: &Arc<Self>, name: &str) {
        if let Some(mut made) = self.prepare(name) {
            // Its end is that the other side is dropped.
            drop(timeout(PATIENCE, made.changed()).await);
        }
    }

    /// Has one made, unless there is one or it failed lately; what ends with that.
    pub(super) fn prepare(self: &Arc<Self>, name: &str) -> Option<watch::Receiver<()>> {
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
        Some(self.begin(name, times, &mut names))
    }

    /// Orders, as a task of its own.
    fn begin(
        self: &Arc<Self>,
        name: &str,
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
                outcome = acme.order_first(&name) => outcome,
            };
            let mut names = lock(&acme.names);
            match outcome {
                Ok(()) => {
                    names.remove(&name);
                    tracing::info!(name, "a certificate was issued");
                }
                Err(error) => {
                    let again = AGAIN.saturating_mul(1 << times.min(10)).min(AGAIN_AT_MOST);
                    let (error, again_s) = (chain(&error), again.as_secs());
                    tracing::warn!(name, error, again_s, "no certificate was issued");
                    let until = Instant::now() + again;
                    names.insert(name, Progress::Failed { until, times: times + 1 });
                }
            }
            drop(tell);
        });
        made
    }

    /// One for a name that had none.
    async fn order_first(&self, name: &str) -> Result<(), OrderError> {
        self.pace.check().map_err(|_| OrderError::TooMany)?;
        self.order(name).await
    }

    async fn order(&self, name: &str) -> Result<(), OrderError> {
        // Never closed.
        let _place = self.orders.acquire().await.map_err(|_| OrderError::Late)?;
        let mut proofs = Proofs { acme: self, tokens: Vec::new() };
        let made = timeout(ORDER, self.make(name, &mut proofs)).await;
        let pem = made.map_err(|_| OrderError::Late)??;
        self.write(&format!("{name}.pem"), pem.as_bytes())?;
        Ok(self.show(name, pem.as_bytes())?)
    }

    /// Key and chain for `name`, in PEM.
    async fn make(&self, name: &str, proofs: &mut Proofs<'_>) -> Result<String, OrderError> {
        let account = self.account.get_or_try_init(|| self.log_in()).await?;
        let identifiers = [Identifier::Dns(name.to_owned())];
        let mut order = account.new_order(&NewOrder::new(&identifiers)).await?;
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

    /// The account there is, or a new one.
    async fn log_in(&self) -> Result<Account, OrderError> {
        let client = client(&self.authority)?;
        let stored = std::fs::read(self.dir.join("account.json")).ok();
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
        let path = self.dir.join("account.json");
        let json = json.map_err(|source| OrderError::Write { path, source })?;
        self.write("account.json", &json)?;
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
        Ok(())
    }

    /// What a challenge is answered with.
    pub(super) fn proof(&self, token: &str) -> Option<String> {
        lock(&self.proofs).get(token).cloned()
    }

    /// Renews whatever is in the last third of its time, if it is still `wanted`; what is not, is
    /// not shown any more once it has expired. Never ends.
    pub(super) async fn renew(self: &Arc<Self>, wanted: impl Fn(&str) -> bool) {
        loop {
            let now = SystemTime::now();
            let held: Vec<_> =
                lock(&self.held).iter().map(|(n, good)| (n.clone(), *good)).collect();
            for (name, (from, to)) in held {
                let third = to.duration_since(from).unwrap_or_default() / 3;
                if to < now && !wanted(&name) {
                    self.shelf.take(&name);
                    lock(&self.held).remove(&name);
                    drop(std::fs::remove_file(self.dir.join(format!("{name}.pem"))));
                } else if to < now + third && wanted(&name) {
                    match self.order(&name).await {
                        Ok(()) => tracing::info!(name, "a certificate was renewed"),
                        Err(error) => {
                            let error = chain(&error);
                            tracing::warn!(name, error, "a certificate was not renewed");
                        }
                    }
                }
            }
            sleep(LOOK).await;
        }
    }
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
        while acme.pace.check().is_ok() {}
        for number in 0..2 * MANY {
            if let Some(mut made) = acme.prepare(&format!("a{number}.box.example")) {
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
        let renewed = acme.order("dev.box.example").await;
        assert!(matches!(renewed, Err(OrderError::Authority(_))), "{renewed:?}");
    }
}
