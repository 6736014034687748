//! What the sandbox saw and minted.

use std::collections::VecDeque;

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::TokenRequest;

/// How many requests are kept: some 100 MB of them.
const KEPT: usize = 100_000;

/// A request to the sandbox and what it was answered.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// When it was read whole.
    pub at: DateTime<Utc>,
    /// The HTTP method.
    pub method: String,
    /// The path, without a query string.
    pub path: String,
    /// Every header, its name in lower case, `authorization` included.
    pub headers: Vec<(String, String)>,
    /// The body as it came.
    pub body: String,
    /// What was asked for, where that was valid.
    pub request: Option<TokenRequest>,
    /// The status of the answer, known before the caller has it; none where there was none.
    pub status: Option<u16>,
    /// The token that was minted, whatever the answer said.
    pub token_string: Option<String>,
}

impl Entry {
    /// The first header of that name, given in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        let (_, value) = self.headers.iter().find(|(key, _)| key == name)?;
        Some(value)
    }
}

#[derive(Default)]
pub(super) struct Ledger {
    pub requests: u64,
    pub minted: u64,
    entries: VecDeque<Entry>,
}

impl Ledger {
    pub fn record(&mut self, entry: Entry) {
        self.requests += 1;
        self.minted += u64::from(entry.token_string.is_some());
        if self.entries.len() == KEPT {
            self.entries.pop_front();
        }
        self.entries.push_back(entry);
    }

    pub fn entries(&self) -> Vec<Entry> {
        self.entries.iter().cloned().collect()
    }
}
