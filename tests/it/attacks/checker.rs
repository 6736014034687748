//! Compares the ledger of the provider's stand-in, what the clients received, and the database.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use sqlx::{Connection, PgConnection};
use token_vendor::crypto::KeyRing;

use super::clients::{Action, Exchange, Reply};
use super::ledger::Call;
use crate::support::find_violations;

/// A promise of the service. docs/reliability.md explains each one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Promise {
    I1Recorded,
    I2MintRecorded,
    I3OneMint,
    I4NotExpired,
    I5NotInvalidated,
    I6NoGuess,
    I7ClearErrors,
    I12NoLoss,
    I14Kept,
    I15Sealed,
    Consistent,
}

impl Promise {
    /// The promises that every request under an attack checks.
    pub const OF_REQUESTS: [Promise; 8] = [
        Promise::I1Recorded,
        Promise::I2MintRecorded,
        Promise::I3OneMint,
        Promise::I4NotExpired,
        Promise::I5NotInvalidated,
        Promise::I6NoGuess,
        Promise::I7ClearErrors,
        Promise::Consistent,
    ];

    /// Returns the name in the table of docs/reliability.md.
    pub fn name(self) -> &'static str {
        match self {
            Promise::I1Recorded => "I1 recorded before handout",
            Promise::I2MintRecorded => "I2 mint record before call",
            Promise::I3OneMint => "I3 one mint at a time",
            Promise::I4NotExpired => "I4 never expired",
            Promise::I5NotInvalidated => "I5 never after invalidation",
            Promise::I6NoGuess => "I6 unknown is never 200",
            Promise::I7ClearErrors => "I7 clear errors only",
            Promise::I12NoLoss => "I12 restart loses nothing",
            Promise::I14Kept => "I14 cleanup keeps records",
            Promise::I15Sealed => "I15 sealed log intact",
            Promise::Consistent => "consistent records",
        }
    }
}

/// The rules that differ between attacks.
#[derive(Clone, Debug)]
pub struct Rules {
    /// The time after the start of a call in which no other call of its combination may start.
    ///
    /// A mint holds its lease for longer. An attack on clocks or one that freezes replicas shortens it.
    pub min_takeover: Duration,
    /// The statuses of answers to token requests.
    pub statuses: &'static [u16],
    /// True if no request may be lost.
    pub loses_nothing: bool,
    /// True if only the service writes records, so that the sealed log must verify.
    pub verifies_log: bool,
}

impl Default for Rules {
    fn default() -> Self {
        Rules {
            // `UPSTREAM_TIMEOUT` of the replicas.
            min_takeover: Duration::from_secs(1),
            statuses: &[200, 201, 502, 503, 504],
            loses_nothing: false,
            verifies_log: true,
        }
    }
}

/// The number of checks and the violations of each promise.
#[derive(Default)]
pub struct Findings {
    checked: BTreeMap<Promise, u64>,
    violations: BTreeMap<Promise, Vec<String>>,
}

impl Findings {
    /// Counts a check. Records a violation, with its description, if the promise does not hold.
    pub fn check(&mut self, promise: Promise, holds: bool, describe: impl FnOnce() -> String) {
        *self.checked.entry(promise).or_default() += 1;
        if !holds {
            self.violations.entry(promise).or_default().push(describe());
        }
    }

    /// Returns the number of checks of a promise.
    pub fn checked(&self, promise: Promise) -> u64 {
        self.checked.get(&promise).copied().unwrap_or_default()
    }

    /// Returns the violations of a promise.
    pub fn violations(&self, promise: Promise) -> &[String] {
        self.violations.get(&promise).map_or(&[], Vec::as_slice)
    }

    /// Returns a summary of all violations with the first three of each promise. It is empty if there are none.
    pub fn summary(&self) -> String {
        let lines = self.violations.iter().map(|(promise, violations)| {
            let first = &violations[..violations.len().min(3)];
            format!(
                "{}: {} violations, for instance\n  {}",
                promise.name(),
                violations.len(),
                first.join("\n  ")
            )
        });
        lines.collect::<Vec<_>>().join("\n")
    }
}

/// The records of the database.
struct Records {
    /// Combination by fingerprint.
    tokens: HashMap<String, HashSet<String>>,
    /// Request id, token id and kind of the events of handouts.
    handouts: HashSet<(String, String, String)>,
    /// Fingerprints of surplus tokens, and of tokens that were recorded as invalidated.
    ///
    /// A mint that lost its lease records either kind.
    surplus: HashSet<String>,
    /// Calls on record and tokens that may have been minted unseen, by combination.
    mints: HashMap<String, (i64, i64)>,
    open_mints: Vec<String>,
}

impl Records {
    async fn read(db: &mut PgConnection) -> sqlx::Result<Records> {
        let mut tokens: HashMap<String, HashSet<String>> = HashMap::new();
        let query = "SELECT fingerprint, bank FROM tokens";
        let rows: Vec<(String, String)> = sqlx::query_as(query).fetch_all(&mut *db).await?;
        for (fingerprint, bank) in rows {
            tokens.entry(fingerprint).or_default().insert(bank);
        }
        let query = "SELECT request_id, token_id::text, kind FROM audit_events
                     WHERE kind IN ('token.minted', 'token.reused') AND request_id IS NOT NULL";
        let handouts: Vec<_> = sqlx::query_as(query).fetch_all(&mut *db).await?;
        let query = "SELECT fingerprint FROM audit_events WHERE detail ?| '{surplus,invalidated}'";
        let surplus: Vec<String> = sqlx::query_scalar(query).fetch_all(&mut *db).await?;
        let query = "SELECT bank, coalesce(sum(started_attempts), 0),
                            sum(CASE outcome WHEN 'unknown' THEN greatest(unseen, started_attempts) ELSE unseen END)
                     FROM mints GROUP BY bank";
        let mints: Vec<(String, i64, i64)> = sqlx::query_as(query).fetch_all(&mut *db).await?;
        let query = "SELECT id::text FROM mints WHERE outcome = 'open'";
        Ok(Records {
            tokens,
            handouts: handouts.into_iter().collect(),
            surplus: surplus.into_iter().collect(),
            mints: mints
                .into_iter()
                .map(|(bank, calls, unseen)| (bank, (calls, unseen)))
                .collect(),
            open_mints: sqlx::query_scalar(query).fetch_all(&mut *db).await?,
        })
    }
}

/// Compares the three records after all replicas have stopped.
///
/// No check compares a time of the database with a time of the ledger, because an attack may change clocks. Adds to the
/// findings of the attack's own checks.
pub async fn compare(
    url: &str,
    calls: &[Call],
    exchanges: &[Exchange],
    rules: &Rules,
    findings: Findings,
) -> Findings {
    let mut db = PgConnection::connect(url).await.unwrap();
    let records = Records::read(&mut db).await.unwrap();
    let keys = KeyRing::new([("k1", &[1; 32])], &[2; 32]);
    let mut comparison = Comparison {
        calls,
        exchanges,
        rules,
        records,
        keys,
        calls_by_token: HashMap::new(),
        findings,
    };
    for call in calls {
        if let Some(token) = &call.token {
            let of_token = comparison.calls_by_token.entry(token).or_default();
            of_token.push(call);
        }
    }
    comparison.compare_handouts();
    comparison.compare_calls();
    comparison.find_overlaps();
    comparison.compare_invalidations();
    comparison.check_answers();
    let mut findings = comparison.findings;
    let violations = find_violations(url).await;
    findings.check(Promise::Consistent, violations.is_empty(), || {
        violations.join("; ")
    });
    findings
}

struct Comparison<'a> {
    calls: &'a [Call],
    exchanges: &'a [Exchange],
    rules: &'a Rules,
    records: Records,
    keys: KeyRing,
    calls_by_token: HashMap<&'a str, Vec<&'a Call>>,
    findings: Findings,
}

impl Comparison<'_> {
    fn fingerprint(&self, token: &str) -> String {
        self.keys.fingerprint(token).to_string()
    }

    /// Compares each handout with the events and with the ledger: I1, I4 and I6.
    fn compare_handouts(&mut self) {
        for exchange in self.exchanges {
            let Some(answer) = exchange.handout() else {
                continue;
            };
            let (id, bank, token) = (answer.text("id"), answer.text("bank"), answer.token());
            let kind = match answer.status {
                201 => "token.minted",
                _ => "token.reused",
            };
            let event = (exchange.request_id.clone(), id.into(), kind.into());
            let fingerprint = self.fingerprint(token);
            let token_is_recorded = self
                .records
                .tokens
                .get(&fingerprint)
                .is_some_and(|banks| banks.contains(bank));
            let is_recorded = token_is_recorded && self.records.handouts.contains(&event);
            self.findings.check(Promise::I1Recorded, is_recorded, || {
                format!("no {kind} of request {} and token {id}", event.0)
            });
            let calls = self
                .calls_by_token
                .get(token)
                .map_or(&[][..], Vec::as_slice);
            let is_requested =
                matches!(&exchange.action, Action::Issue { bank: requested } if requested == bank);
            let is_minted = calls.iter().any(|call| call.is_good && call.bank == bank);
            self.findings
                .check(Promise::I6NoGuess, is_requested && is_minted, || {
                    format!("token {id} of {bank} ({token:.12}) is not from a good answer; its calls: {calls:?}")
                });
            let expires = calls.iter().map(|call| call.expires).max();
            let is_alive = expires.is_none_or(|expires| exchange.started < expires);
            self.findings.check(Promise::I4NotExpired, is_alive, || {
                let late = expires.map(|expires| exchange.started - expires);
                format!("token {id} was requested {late:?} after its end")
            });
        }
    }

    /// Compares each call with the mint records: I2.
    fn compare_calls(&mut self) {
        let mut calls: HashMap<&str, i64> = HashMap::new();
        let mut missing: HashMap<&str, i64> = HashMap::new();
        for call in self.calls {
            *calls.entry(&call.bank).or_default() += 1;
            if let Some(token) = &call.token {
                let banks = self.records.tokens.get(&self.fingerprint(token));
                let is_missing = banks.is_none_or(|banks| !banks.contains(&call.bank));
                *missing.entry(&call.bank).or_default() += i64::from(is_missing);
            }
        }
        for (bank, calls) in calls {
            let missing = missing.get(bank).copied().unwrap_or_default();
            let (recorded, unseen) = self.records.mints.get(bank).copied().unwrap_or_default();
            for number in 0..calls {
                let is_recorded = number < recorded;
                self.findings
                    .check(Promise::I2MintRecorded, is_recorded, || {
                        format!("{bank}: {calls} calls, {recorded} on record")
                    });
            }
            self.findings
                .check(Promise::I2MintRecorded, missing <= unseen, || {
                    format!("{bank}: {missing} tokens are not on record, {unseen} may be")
                });
        }
        let open = &self.records.open_mints;
        self.findings
            .check(Promise::I2MintRecorded, open.is_empty(), || {
                format!("mints stay open: {open:?}")
            });
    }

    /// Searches for calls of one combination that overlap: I3.
    ///
    /// A mint may take over after a lease. Then one of the two tokens is a surplus token or not on record.
    fn find_overlaps(&mut self) {
        let mut calls: Vec<&Call> = self.calls.iter().collect();
        calls.sort_by_key(|call| call.started);
        let mut running: HashMap<&str, &Call> = HashMap::new();
        for call in calls {
            if let Some(earlier) = running.get(&*call.bank) {
                let overlaps = earlier.ended.is_none_or(|ended| ended > call.started);
                let is_takeover = call.started - earlier.started >= self.rules.min_takeover
                    && (self.is_exceptional(earlier) || self.is_exceptional(call));
                self.findings
                    .check(Promise::I3OneMint, !overlaps || is_takeover, || {
                        let after = call.started - earlier.started;
                        format!("{}: a call starts {after:?} after a running one", call.bank)
                    });
                if overlaps && !ends_before(earlier, call) {
                    continue;
                }
            }
            running.insert(&call.bank, call);
        }
    }

    /// Returns true if the token of the call is not on record, or recorded as surplus or as invalidated.
    fn is_exceptional(&self, call: &Call) -> bool {
        call.token.as_ref().is_none_or(|token| {
            let fingerprint = self.fingerprint(token);
            self.records.surplus.contains(&fingerprint)
                || !self.records.tokens.contains_key(&fingerprint)
        })
    }

    /// Searches for handouts of invalidated tokens: I5.
    ///
    /// An invalidation ends every token whose call started before it. It may name the id, the token string or the user.
    fn compare_invalidations(&mut self) {
        let mut invalidations: HashMap<&str, Vec<&Exchange>> = HashMap::new();
        for exchange in self.exchanges {
            let name = match &exchange.action {
                Action::Issue { .. } => continue,
                Action::InvalidateUser => &exchange.user,
                Action::InvalidateId(name) | Action::InvalidateToken(name) => name,
            };
            if exchange.answer().is_some_and(|answer| answer.status == 200) {
                invalidations.entry(name).or_default().push(exchange);
            }
        }
        for exchange in self.exchanges {
            let Some(answer) = exchange.handout() else {
                continue;
            };
            let (id, token) = (answer.text("id"), answer.token());
            let calls = self.calls_by_token.get(token).into_iter().flatten();
            let of_combination = calls.filter(|call| call.bank == answer.text("bank"));
            let Some(minted) = of_combination.map(|call| call.started).max() else {
                continue;
            };
            let named = [id, token, &exchange.user].map(|name| invalidations.get(name));
            let earlier = named.into_iter().flatten().flatten().find(|invalidation| {
                minted < invalidation.started && invalidation.ended < exchange.started
            });
            self.findings
                .check(Promise::I5NotInvalidated, earlier.is_none(), || {
                    format!("token {id} after {:?}", earlier.map(|found| &found.action))
                });
        }
    }

    /// Checks the status and the form of each answer: I7 and I12.
    fn check_answers(&mut self) {
        for exchange in self.exchanges {
            let describe = || format!("{:.300}", format!("{exchange:?}"));
            if let Some(answer) = exchange.answer() {
                let status = answer.status;
                let is_allowed = match exchange.action {
                    Action::Issue { .. } => self.rules.statuses.contains(&status),
                    _ => matches!(status, 200 | 503),
                };
                let is_problem = answer.header("content-type") == "application/problem+json"
                    && answer.body["status"] == status
                    && (!matches!(status, 503 | 504) || answer.retry_after().is_some());
                let is_clear = is_allowed && (status < 300 || is_problem);
                self.findings
                    .check(Promise::I7ClearErrors, is_clear, describe);
            }
            if self.rules.loses_nothing {
                let is_kept = !matches!(exchange.reply, Reply::Lost);
                self.findings.check(Promise::I12NoLoss, is_kept, describe);
            }
        }
    }
}

fn ends_before(earlier: &Call, later: &Call) -> bool {
    match (earlier.ended, later.ended) {
        (Some(earlier), Some(later)) => earlier < later,
        (ended, _) => ended.is_some(),
    }
}
