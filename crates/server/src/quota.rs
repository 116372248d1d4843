//! How many answers each key may have under way at once.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::Refusal;

/// See the module.
pub(crate) struct Quotas {
    limit: Option<usize>,
    running: Mutex<BTreeMap<usize, usize>>,
}

/// A key's answers under way; given back when it is dropped.
pub(crate) struct Share {
    quotas: Arc<Quotas>,
    key: usize,
    answers: usize,
}

impl Quotas {
    /// None = no limit.
    pub(crate) fn new(limit: Option<usize>) -> Arc<Self> {
        Arc::new(Quotas { limit, running: Mutex::default() })
    }

    /// Takes a share of a key's quota.
    pub(crate) fn take(self: &Arc<Self>, key: usize, answers: usize) -> Result<Share, Refusal> {
        let mut all = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let running = all.entry(key).or_default();
        if let Some(limit) = self.limit.filter(|&limit| *running + answers > limit) {
            let why = format!("{answers} more beside {running} under way; this key may have {limit} at once");
            return Err(if answers > limit { Refusal::field("n", why) } else { Refusal::Busy(why) });
        }
        *running += answers;
        Ok(Share { quotas: Arc::clone(self), key, answers })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut all = self.quotas.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(running) = all.get_mut(&self.key) {
            *running -= self.answers;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_given_back() {
        let quotas = Quotas::new(Some(3));
        let two = quotas.take(0, 2).unwrap();
        assert!(matches!(quotas.take(0, 2), Err(Refusal::Busy(_))));
        let other = quotas.take(1, 3).unwrap();
        drop(two);
        assert!(quotas.take(0, 3).is_ok());
        assert!(matches!(quotas.take(0, 4), Err(Refusal::Field { .. })), "waiting would not help");
        drop(other);
        assert!(Quotas::new(None).take(0, 1000).is_ok());
    }
}
