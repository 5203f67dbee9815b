//! Who may do things.

use super::{Doing, Result, Store};
use crate::time;

impl Store {
    /// The stored hash of a user's password, none for an unknown user.
    pub async fn password_hash(&self, username: &str) -> Result<Option<String>> {
        sqlx::query_scalar("SELECT password_hash FROM users WHERE username = $1")
            .bind(username)
            .fetch_optional(&self.pool)
            .await
            .doing("read a user")
    }

    /// Whether nobody was made yet.
    pub async fn has_no_users(&self) -> Result<bool> {
        let count: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM users")
            .fetch_one(&self.pool)
            .await
            .doing("count users")?;
        Ok(count == 0)
    }

    /// Makes a user, or changes its password.
    pub async fn set_password(&self, username: &str, hash: &str) -> Result<()> {
        sqlx::query(
            "INSERT INTO users (username, password_hash, created) VALUES ($1, $2, $3)
             ON CONFLICT (username) DO UPDATE SET password_hash = excluded.password_hash",
        )
        .bind(username)
        .bind(hash)
        .bind(time::now())
        .execute(&self.pool)
        .await
        .doing("store a user")?;
        Ok(())
    }
}
