//! The table of docs/reliability.md, which the long attacks write in `make chaos`.

use std::fs;
use std::sync::Mutex;

use super::checker::{Findings, Promise};

const BEGIN: &str = "<!-- results: begin -->\n";
const END: &str = "<!-- results: end -->";

/// Replaces the rows of an attack in the file that `RELIABILITY_TABLE` names. Does nothing without that variable.
///
/// A row is a promise and an attack. The last column says what the attack found without a guard of the promise; it is
/// written by hand and stays.
pub fn publish(attack: &str, faults: &str, promises: &[Promise], findings: &Findings) {
    static LOCK: Mutex<()> = Mutex::new(());
    let Some(path) = std::env::var_os("RELIABILITY_TABLE") else {
        return;
    };
    let _lock = LOCK.lock().unwrap();
    let page = fs::read_to_string(&path).unwrap();
    let (before, rest) = page.split_once(BEGIN).expect("the first marker");
    let (table, after) = rest.split_once(END).expect("the second marker");
    let (header, rows) = split_header(table);
    let mut rows: Vec<String> = rows.lines().map(str::to_owned).collect();
    for promise in promises {
        let key = format!("| {} | {attack} |", promise.name());
        let old = rows.iter().position(|row| row.starts_with(&key));
        let found = match old {
            Some(index) => last_cell(&rows.remove(index)),
            None => String::new(),
        };
        rows.push(format!(
            "{key} {} | {faults} | {} | {found} |",
            findings.checked(*promise),
            findings.violations(*promise).len(),
        ));
    }
    rows.sort_by_key(|row| (number_of(row), row.clone()));
    let rows = rows.join("\n");
    fs::write(
        &path,
        format!("{before}{BEGIN}{header}{rows}\n{END}{after}"),
    )
    .unwrap();
}

/// Splits the table after the line below its header.
fn split_header(table: &str) -> (&str, &str) {
    let lines = table.match_indices('\n');
    let second = lines.map(|(index, _)| index + 1).nth(1);
    table.split_at(second.expect("a header of two lines"))
}

/// Returns the number of the invariant that the row begins with.
fn number_of(row: &str) -> u32 {
    let number = row.trim_start_matches("| I").split(' ').next();
    number
        .and_then(|text| text.parse().ok())
        .unwrap_or(u32::MAX)
}

fn last_cell(row: &str) -> String {
    let cells = row.trim().trim_matches('|');
    cells.rsplit('|').next().unwrap_or_default().trim().into()
}
