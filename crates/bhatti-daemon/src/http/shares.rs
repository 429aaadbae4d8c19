//! Each account's share of something that all of them use.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use bhatti_types::UserId;
use tokio::sync::Semaphore;

/// Places, so many for each account.
pub(super) struct Shares {
    each: usize,
    /// At most one entry an account.
    users: Mutex<HashMap<UserId, Arc<Semaphore>>>,
}

impl Shares {
    pub(super) fn new(each: usize) -> Self {
        Self { each, users: Mutex::default() }
    }

    /// The places of `user`.
    pub(super) fn of(&self, user: &UserId) -> Arc<Semaphore> {
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || Arc::new(Semaphore::new(self.each));
        users.entry(user.clone()).or_insert_with(new).clone()
    }
}
