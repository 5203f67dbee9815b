//! Changes that are asked for over a network, and go on whatever becomes of the caller.

use std::time::Duration;

use tokio::time::timeout;

use crate::error::AgentError;

/// Carries a change to the proc `name` through even if the caller hangs up, or has waited long enough.
///
/// # Errors
/// What the change itself ends with; [`AgentError::Slow`] after the deadline, [`AgentError::Broken`] when it panicked.
pub async fn to_the_end<T: Send + 'static>(
    name: String,
    deadline: Duration,
    change: impl Future<Output = Result<T, AgentError>> + Send + 'static,
) -> Result<T, AgentError> {
    match timeout(deadline, tokio::spawn(change)).await {
        Ok(Ok(done)) => done,
        Ok(Err(e)) if e.is_panic() => Err(AgentError::Broken(name)),
        Ok(Err(_)) => Err(AgentError::ShuttingDown),
        Err(_) => Err(AgentError::Slow { name, seconds: deadline.as_secs() }),
    }
}
