//! The table of `client list`, for people.

use chrono::{DateTime, Utc};

use crate::model::ClientRecord;

const HEAD: [&str; 7] = [
    "NAME",
    "KEY",
    "STATE",
    "SCOPES",
    "LIMITS",
    "EXPIRES",
    "LAST USED",
];

/// Formats the clients as a table with one line each.
pub(super) fn client_table(clients: &[ClientRecord]) -> String {
    #[expect(
        clippy::disallowed_methods,
        reason = "the table shows the state at this time; nothing is decided by it"
    )]
    let now = Utc::now();
    let mut rows = vec![HEAD.map(str::to_owned)];
    rows.extend(clients.iter().map(|client| row(client, now)));
    let widths: Vec<usize> = (0..HEAD.len())
        .map(|column| {
            rows.iter()
                .map(|row| width(&row[column]))
                .max()
                .unwrap_or(0)
        })
        .collect();
    let lines = rows.iter().map(|row| {
        let cells = row.iter().zip(&widths);
        let padded = cells.map(|(cell, longest)| cell.clone() + &" ".repeat(longest - width(cell)));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    });
    lines.collect::<Vec<_>>().join("\n")
}

fn row(client: &ClientRecord, now: DateTime<Utc>) -> [String; 7] {
    let settings = &client.settings;
    let expires_at = settings.expires_at;
    let state = match client.is_expired(now) {
        _ if !client.is_enabled => "disabled",
        true => "expired",
        false => "enabled",
    };
    let scopes: Vec<_> = settings.scopes.iter().map(|scope| scope.name()).collect();
    let none = || "-".to_owned();
    [
        settings.name.escape_debug().to_string(),
        client.api_key.clone(),
        state.into(),
        scopes.join(","),
        list_limits(client).unwrap_or_else(none),
        expires_at.map_or_else(none, |end| end.format("%F %R").to_string()),
        client.last_used_on.map_or_else(none, |day| day.to_string()),
    ]
}

fn list_limits(client: &ClientRecord) -> Option<String> {
    let limits = &client.settings.limits;
    let mints = limits
        .mints_per_hour
        .map(|limit| format!("{limit} mints/h"));
    let requests = limits
        .requests_per_second
        .map(|limit| format!("{limit} requests/s"));
    let networks = limits.allow_from.as_ref().map(|networks| {
        let networks: Vec<_> = networks.iter().map(ToString::to_string).collect();
        format!("from {}", networks.join(","))
    });
    let parts: Vec<_> = [mints, requests, networks].into_iter().flatten().collect();
    (!parts.is_empty()).then(|| parts.join("; "))
}

fn width(text: &str) -> usize {
    text.chars().count()
}
