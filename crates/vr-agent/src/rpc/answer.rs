//! How much answers may hold: one by itself, and all together.
//!
//! Logs are long and readers slow. What an answer takes is reserved before it is read, and given back when the last of
//! it is on its way.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use vr_common::supervisor::fault;
use vr_common::xmlrpc::{Fault, MAX_DOCUMENT, Value};

use super::faults::about;

/// What all long requests and answers may hold together, in KiB.
const BUDGET: usize = 64 * 1024;
/// How long one waits until others have given back enough.
const PATIENCE: Duration = Duration::from_secs(10);
/// How many times a text is in memory while it becomes an answer.
const COPIES: usize = 2;

/// The memory for long requests and answers.
#[derive(Debug, Clone)]
pub(super) struct Budget(Arc<Semaphore>);

/// Some of the budget; given back on drop.
pub(super) type Reserved = OwnedSemaphorePermit;

impl Budget {
    pub fn new() -> Self {
        Self(Arc::new(Semaphore::new(BUDGET)))
    }

    /// So many bytes; none when they are not to be had in time.
    pub async fn reserve(&self, bytes: usize) -> Option<Reserved> {
        let wanted = u32::try_from(bytes.div_ceil(1024).min(BUDGET)).ok()?;
        timeout(PATIENCE, Arc::clone(&self.0).acquire_many_owned(wanted)).await.ok()?.ok()
    }
}

/// The answer to one request, while it is made.
#[derive(Debug)]
pub(super) struct Allowance {
    budget: Budget,
    /// How much longer the answer may become, in bytes.
    left: usize,
    /// Whether something had no room in it.
    is_full: bool,
    reserved: Option<Reserved>,
}

impl Allowance {
    pub fn new(budget: Budget) -> Self {
        Self { budget, left: MAX_DOCUMENT, is_full: false, reserved: None }
    }

    /// Counts bytes that are about to be part of the answer. Once there were too many, there is no room for anything more.
    pub fn spend(&mut self, bytes: usize) -> Result<(), Fault> {
        self.is_full |= bytes > self.left;
        self.has_room()?;
        self.left -= bytes;
        Ok(())
    }

    /// Whether everything so far had room.
    pub fn has_room(&self) -> Result<(), Fault> {
        if self.is_full {
            let text = format!("the answer would be longer than {MAX_DOCUMENT} bytes; ask for less");
            return Err(about(fault::FAILED, text));
        }
        Ok(())
    }

    /// How much longer the answer may become, in bytes.
    pub fn left(&self) -> usize {
        self.left
    }

    /// The same for bytes of a log, for which there has to be room.
    pub async fn spend_on_log(&mut self, bytes: usize) -> Result<(), Fault> {
        self.spend(bytes)?;
        let reserved = self
            .budget
            .reserve(bytes * COPIES)
            .await
            .ok_or_else(|| about(fault::FAILED, "too many logs are being read; try again later"))?;
        match &mut self.reserved {
            Some(before) => before.merge(reserved),
            none => *none = Some(reserved),
        }
        Ok(())
    }

    /// What has to be kept until the answer is on its way.
    pub fn into_reserved(self) -> Option<Reserved> {
        self.reserved
    }
}

/// About how long a value becomes in an answer, in bytes.
pub(super) fn weight(value: &Value) -> usize {
    // `<value><string></string></value>` and its like.
    const MARKUP: usize = 32;
    MARKUP
        + match value {
            Value::Nil | Value::Boolean(_) | Value::Int(_) | Value::Double(_) => 0,
            Value::String(text) | Value::DateTime(text) => text.len(),
            Value::Base64(bytes) => bytes.len() / 3 * 4,
            Value::Array(items) => items.iter().map(weight).sum(),
            Value::Struct(members) => {
                members.iter().map(|(name, member)| MARKUP + name.len() + weight(member)).sum()
            }
        }
}
