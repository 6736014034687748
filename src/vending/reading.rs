//! Who read the trail is in the trail.

use chrono::{DateTime, Utc};
use serde_json::Value;

use super::Vendor;
use crate::db::events::insert_event;
use crate::model::{Caller, EventKind, Failure};

impl Vendor {
    /// Puts a reading of the trail on record, before what was read goes out; returns when that was.
    pub async fn record_reading(
        &self,
        caller: Caller,
        detail: Value,
    ) -> Result<DateTime<Utc>, Failure> {
        self.parts
            .ask("record a reading", move |pool| async move {
                insert_event(&pool, EventKind::AuditRead, Some(&caller), &detail).await
            })
            .await
    }
}
