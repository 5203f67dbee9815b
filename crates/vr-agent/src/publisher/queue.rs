//! What waits between Supervisor, which must never wait, and Redis, which may be away: a bounded queue.
//!
//! Messages keep their order and the oldest goes when there are too many. However many refreshes of the cache are
//! asked for, one waits.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::messages::{self, Kind};
use super::protocol::Event;

/// The most messages that wait. At some 2 KB each, a few megabytes.
pub const CAPACITY: usize = 1000;
/// A refresh waits for no more messages than this, so that the cache follows even when they do not end.
const MESSAGES_PER_REFRESH: usize = 50;

/// A message on its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pending {
    /// Supervisor has to be asked first.
    State {
        /// What happened.
        event: Event,
        /// To whom, as Supervisor knows it.
        process: String,
        /// How often Supervisor was asked in vain.
        tries: u32,
    },
    /// A group of processes is gone.
    Removed {
        /// What happened.
        event: Event,
        /// The group.
        group: String,
    },
    /// The text to publish.
    Message(String),
}

/// What the worker is to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Work {
    /// Publish.
    Publish(Pending),
    /// Refresh the cache.
    Refresh,
    /// Nothing, and nothing will come.
    End,
}

/// The queue; shared by one thread that fills it and one that empties it.
#[derive(Debug, Default)]
pub struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    pending: VecDeque<Pending>,
    refresh: bool,
    taken_since_refresh: usize,
    dropped: u64,
    closed: bool,
}

impl State {
    fn push(&mut self, pending: Pending) {
        if self.pending.len() >= CAPACITY {
            self.pending.pop_front();
            self.dropped += 1;
        }
        self.pending.push_back(pending);
    }
}

impl Queue {
    fn state(&self) -> MutexGuard<'_, State> {
        // The state is whole between any two lines that change it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an event, at the cost of the oldest if need be, and asks for a refresh. Never waits.
    pub fn push(&self, event: Event) {
        let pending = match messages::kind(&event) {
            Kind::State { process } => Some(Pending::State { event, process, tries: 0 }),
            Kind::Removed { group } => Some(Pending::Removed { event, group }),
            Kind::Other => None,
        };
        let mut state = self.state();
        if let Some(pending) = pending {
            state.push(pending);
        }
        state.refresh = true;
        self.changed.notify_one();
    }

    /// Adds a text to publish, at the cost of the oldest if need be. Never waits.
    pub fn push_message(&self, message: String) {
        self.state().push(Pending::Message(message));
        self.changed.notify_one();
    }

    /// Asks for a refresh. Never waits.
    pub fn refresh(&self) {
        self.state().refresh = true;
        self.changed.notify_one();
    }

    /// Waits for work.
    pub fn take(&self) -> Work {
        let mut state = self.state();
        loop {
            if state.refresh
                && (state.pending.is_empty() || state.taken_since_refresh >= MESSAGES_PER_REFRESH)
            {
                state.refresh = false;
                state.taken_since_refresh = 0;
                return Work::Refresh;
            }
            if let Some(pending) = state.pending.pop_front() {
                state.taken_since_refresh += 1;
                return Work::Publish(pending);
            }
            if state.closed {
                return Work::End;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Puts back what could not be done. It is the oldest, so it is dropped if others took its place.
    pub fn put_back(&self, work: Work) {
        let mut state = self.state();
        match work {
            Work::Publish(_) if state.pending.len() >= CAPACITY => state.dropped += 1,
            Work::Publish(pending) => state.pending.push_front(pending),
            Work::Refresh => state.refresh = true,
            Work::End => {}
        }
    }

    /// How many messages were dropped since the last call.
    pub fn take_dropped(&self) -> u64 {
        std::mem::take(&mut self.state().dropped)
    }

    /// How many messages wait.
    pub fn waiting(&self) -> usize {
        self.state().pending.len()
    }

    /// Nothing will be added any more.
    pub fn close(&self) {
        self.state().closed = true;
        self.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use jiff::Timestamp;

    use super::*;

    fn event(name: &str, process: &str) -> Event {
        let payload_headers = ["processname", "groupname"].map(|key| (key.to_owned(), process.to_owned()));
        Event {
            name: name.into(),
            payload_headers: BTreeMap::from(payload_headers),
            payload_data: String::new(),
            arrived: Timestamp::UNIX_EPOCH,
        }
    }

    fn fill(queue: &Queue, count: usize) {
        for i in 0..count {
            queue.push(event("PROCESS_STATE_RUNNING", &i.to_string()));
        }
    }

    /// All that the queue has to do until it is closed and empty, in short.
    fn drain(queue: &Queue) -> Vec<String> {
        queue.close();
        std::iter::from_fn(|| match queue.take() {
            Work::Publish(Pending::State { process, .. }) => Some(process),
            Work::Publish(Pending::Removed { group, .. }) => Some(format!("-{group}")),
            Work::Publish(Pending::Message(text)) => Some(text),
            Work::Refresh => Some("refresh".into()),
            Work::End => None,
        })
        .collect()
    }

    #[test]
    fn messages_keep_their_order_and_refreshes_collapse() {
        let queue = Queue::default();
        fill(&queue, 2);
        queue.push(event("TICK_60", "x"));
        queue.push(event("PROCESS_GROUP_REMOVED", "g"));
        queue.push(event("PROCESS_GROUP_ADDED", "g"));
        queue.push_message("text".into());
        queue.refresh();
        assert_eq!(drain(&queue), ["0", "1", "-g", "text", "refresh"]);
    }

    #[test]
    fn the_oldest_goes_when_there_are_too_many() {
        let queue = Queue::default();
        fill(&queue, CAPACITY + 7);
        assert_eq!((queue.waiting(), queue.take_dropped(), queue.take_dropped()), (CAPACITY, 7, 0));
        let Work::Publish(oldest) = queue.take() else { panic!("a refresh came first") };
        assert!(matches!(&oldest, Pending::State { process, .. } if process == "7"), "{oldest:?}");
        // Its place was taken in the meantime.
        fill(&queue, 1);
        queue.put_back(Work::Publish(oldest));
        assert_eq!((queue.waiting(), queue.take_dropped()), (CAPACITY, 1));
    }

    #[test]
    fn what_is_put_back_comes_first() {
        let queue = Queue::default();
        fill(&queue, 2);
        assert!(matches!(queue.take(), Work::Publish(_)));
        queue.put_back(Work::Publish(Pending::Message("again".into())));
        assert_eq!(drain(&queue), ["again", "1", "refresh"]);
        queue.put_back(Work::Refresh);
        assert_eq!(drain(&queue), ["refresh"]);
    }

    #[test]
    fn a_refresh_does_not_wait_for_the_end_of_a_flood() {
        let queue = Queue::default();
        fill(&queue, 2 * MESSAGES_PER_REFRESH);
        assert_eq!(drain(&queue).iter().position(|work| work == "refresh"), Some(MESSAGES_PER_REFRESH));
    }

    #[test]
    fn work_that_comes_wakes_the_one_that_waits() {
        let queue = Queue::default();
        std::thread::scope(|scope| {
            let taken = scope.spawn(|| queue.take());
            queue.push(event("TICK_5", "x"));
            assert_eq!(taken.join().unwrap(), Work::Refresh);
            let taken = scope.spawn(|| queue.take());
            queue.close();
            assert_eq!(taken.join().unwrap(), Work::End);
        });
    }
}
