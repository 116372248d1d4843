//! Answers that keep to a shape: a grammar's mask over the next token, computed beside the forward pass.
//!
//! After a token is drawn its guide goes to a helper thread, which computes the next mask while the model computes the
//! next logits. Whoever draws next waits for it if need be, and computes it here where nobody has (drafts).

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

use fathom_text::{Grammar, Guide};

use crate::{Error, Result};

/// A compiled shape, shared by the answers of a request.
#[derive(Clone, Debug)]
pub struct Shaped(pub Arc<Grammar>);

impl PartialEq for Shaped {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

fn broken(error: fathom_text::TextError) -> Error {
    Error::Text { place: "shape of the answer", why: error.to_string() }
}

/// A guide with the mask of the next token, as it comes back from the helper.
type Prepared = (Box<Guide>, fathom_text::Result<Vec<u32>>);

enum State {
    Here(Box<Guide>, Option<Vec<u32>>),
    Away(Receiver<Prepared>),
    /// It failed, or its helper is gone.
    Lost,
}

/// The guide of one sequence.
pub struct Guided(State);

impl Guided {
    /// A guide at the beginning of an answer.
    pub fn new(shaped: &Shaped) -> Self {
        Guided(State::Here(Box::new(shaped.0.start()), None))
    }

    /// Brings the guide and its mask here.
    fn ready(&mut self) -> Result<(&mut Guide, &[u32])> {
        let (guide, mask) = match std::mem::replace(&mut self.0, State::Lost) {
            State::Here(guide, Some(mask)) => (guide, Ok(mask)),
            State::Here(mut guide, None) => {
                let mask = guide.mask();
                (guide, mask)
            }
            State::Away(back) => {
                let gone = |_| Error::Model("the thread that computes masks is gone".to_owned());
                back.recv().map_err(gone)?
            }
            State::Lost => return Err(Error::Model("a shape was used after it failed".to_owned())),
        };
        self.0 = State::Here(guide, Some(mask.map_err(broken)?));
        match &mut self.0 {
            State::Here(guide, Some(mask)) => Ok((guide, mask)),
            _ => unreachable!("it was just put there"),
        }
    }

    /// Which tokens may come next: bit `i % 32` of word `i / 32` for token `i`.
    ///
    /// # Errors
    /// If the step exceeds its bounds.
    pub fn mask(&mut self) -> Result<&[u32]> {
        Ok(self.ready()?.1)
    }

    /// Takes the next token. Returns whether the answer is complete.
    ///
    /// # Errors
    /// If the token does not fit.
    pub fn take(&mut self, token: u32) -> Result<bool> {
        let complete = self.ready()?.0.take(token).map_err(broken)?;
        if let State::Here(_, mask) = &mut self.0 {
            *mask = None;
        }
        Ok(complete)
    }
}

/// The thread that computes masks ahead. It ends when this is dropped.
pub struct Helper(Sender<(Box<Guide>, SyncSender<Prepared>)>);

impl Helper {
    /// Starts the thread.
    ///
    /// # Errors
    /// If the system gives none.
    pub fn start() -> Result<Self> {
        let (sender, receiver) = channel::<(Box<Guide>, SyncSender<Prepared>)>();
        let work = move || {
            for (mut guide, back) in receiver {
                let mask = guide.mask();
                // A sequence that has ended wants nothing any more.
                let _ = back.send((guide, mask));
            }
        };
        let spawned = std::thread::Builder::new().name("fathom-masks".to_owned()).spawn(work);
        spawned.map_err(|e| Error::Model(format!("no thread for masks: {e}")))?;
        Ok(Helper(sender))
    }

    /// Has the next mask computed, unless it is known or under way.
    pub fn prepare(&self, guided: &mut Guided) {
        if !matches!(guided.0, State::Here(_, None)) {
            return;
        }
        let State::Here(guide, _) = std::mem::replace(&mut guided.0, State::Lost) else { return };
        let (back, receiver) = sync_channel(1);
        guided.0 = match self.0.send((guide, back)) {
            Ok(()) => State::Away(receiver),
            Err(returned) => State::Here(returned.0.0, None),
        };
    }
}
