//! Pages of lists: `limit`, `offset`, and the way to the next page.

use http::Uri;
use serde::Serialize;
use url::form_urlencoded;
use vr_common::api::{Meta, Page};

use super::error::{Answer, Failure, json_response};

/// The objects of a page when nobody says how many.
const USUAL: u32 = 100;
/// What `limit=0`, "all", means.
const ALL: u32 = 1_000;
/// The most objects of a page.
const MOST: u32 = 10_000;

/// The query of a list, taken apart.
#[derive(Debug)]
pub(super) struct ListQuery {
    path: String,
    pub limit: u32,
    pub offset: u32,
    /// Everything but `limit`, `offset` and `format`, in order.
    pub filters: Vec<(String, String)>,
}

impl ListQuery {
    pub fn parse(uri: &Uri) -> Result<Self, Failure> {
        let mut query = Self { path: uri.path().to_owned(), limit: USUAL, offset: 0, filters: Vec::new() };
        for (name, value) in form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes()) {
            let number = || {
                value.parse::<u32>().map_err(|_| {
                    Failure::field(&name, format!("{name}: {value:?} is not a whole number from 0 on"))
                })
            };
            match &*name {
                "limit" => {
                    query.limit = match number()? {
                        0 => ALL,
                        limit => limit.min(MOST),
                    }
                }
                "offset" => query.offset = number()?,
                // Clients of old ask for JSON, which is all there is.
                "format" => {}
                _ => query.filters.push((name.into_owned(), value.into_owned())),
            }
        }
        if !query.path.ends_with('/') {
            query.path.push('/');
        }
        Ok(query)
    }

    /// A page, with the ways to its neighbours.
    pub fn page<T: Serialize>(&self, total: i64, objects: Vec<T>) -> Answer {
        let total = u32::try_from(total).unwrap_or(u32::MAX);
        let end = self.offset.saturating_add(self.limit);
        let next = (end < total).then(|| self.at(end));
        let previous = (self.offset > 0).then(|| self.at(self.offset.saturating_sub(self.limit)));
        let meta = Meta { limit: self.limit, offset: self.offset, total_count: total, next, previous };
        Ok(json_response(http::StatusCode::OK, &Page { meta, objects }))
    }

    fn at(&self, offset: u32) -> String {
        let mut query = form_urlencoded::Serializer::new(String::new());
        query.extend_pairs(&self.filters);
        query.append_pair("limit", &self.limit.to_string());
        query.append_pair("offset", &offset.to_string());
        format!("{}?{}", self.path, query.finish())
    }

    /// An error when there is a filter: this list knows none but those named.
    pub fn only(&self, known: &[&str]) -> Result<(), Failure> {
        match self.filters.iter().find(|(name, _)| !known.contains(&name.as_str())) {
            Some((name, _)) => Err(Failure::field(name, format!("this list cannot be filtered by {name:?}"))),
            None => Ok(()),
        }
    }
}
