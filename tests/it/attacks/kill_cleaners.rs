//! Four cleanups that run beside load and are killed at random times.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use sqlx::{AssertSqlSafe, Executor};
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::checker::Promise;
use super::clients::Load;
use super::{Attack, LONG, SHORT};
use crate::cleanup::{count_recorded, seed};
use crate::support::{program, run};

/// The records of each kind that are inserted in a round.
const ROUND: u32 = 150;

/// The kinds of tokens with a retention of 1 hour: user, time since the end, recorded as valid, whether the token is
/// removed with its mint, and whether the combination is removed. A combination stays for a day.
const TOKENS: [(&str, &str, bool, bool, bool); 4] = [
    ("old", "3 days", false, true, true),
    ("recent", "2 hours", false, true, false),
    ("kept", "30 minutes", false, false, false),
    ("expired", "10 minutes", true, false, false),
];

/// The kinds of open mints: user, time since the start, and the outcome after the cleanup.
const MINTS: [(&str, &str, &str); 2] = [
    ("stale", "10 minutes", "unknown"),
    ("open", "2 minutes", "open"),
];

#[tokio::test(flavor = "multi_thread")]
async fn cleaners_that_are_killed_break_no_promise() {
    kill_cleaners(SHORT).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs minutes: run make chaos"]
async fn cleaners_that_are_killed_for_a_minute_break_no_promise() {
    kill_cleaners(LONG).await;
}

async fn kill_cleaners(duration: Duration) {
    let mut attack = Attack::new("cleaners killed", duration).await;
    // The attack inserts records of its own.
    attack.rules.verifies_log = false;
    let settings = [("TOKEN_RETENTION", "1h"), ("CLEANUP_INTERVAL", "off")];
    let variables = attack.variables(&settings);
    let replicas = attack.start_replicas(1, &settings).await;
    insert_records(&attack, 0).await;
    let clients = attack.start_clients(&Load::default());
    let mut cleaners = JoinSet::new();
    let ends = attack.ends;
    for _ in 0..4 {
        let (variables, mut rng) = (variables.clone(), attack.rng.fork());
        cleaners.spawn(async move {
            let mut kills = 0;
            while Instant::now() < ends || kills < 2 {
                let mut cleaner = program(&["cleanup", "--batch-size", "10"], &variables);
                let mut cleaner = cleaner.spawn().unwrap();
                sleep(Duration::from_millis(rng.u64(50..600))).await;
                kills += u64::from(cleaner.try_wait().unwrap().is_none());
                cleaner.kill().await.unwrap();
            }
            kills
        });
    }
    let mut rounds = 1;
    while attack.is_running() {
        sleep(Duration::from_secs(1)).await;
        insert_records(&attack, rounds).await;
        rounds += 1;
    }
    let kills: u64 = cleaners.join_all().await.into_iter().sum();
    assert!(kills >= 8, "only {kills} kills");
    let last = run(&["cleanup"], &variables).await;
    assert_eq!(last.code, 0, "{last:?}");
    check_records(&mut attack, rounds).await;
    let faults = format!("{kills} kills");
    let promises = [Promise::I14Kept];
    attack.finish(clients, replicas, faults, &promises).await;
}

/// Inserts records of every kind, of users that are named after the kind and the round.
async fn insert_records(attack: &Attack, round: u32) {
    let world = &attack.world;
    for (kind, age, is_valid, ..) in TOKENS {
        seed(world, &format!("{kind}-{round}"), ROUND, age, is_valid).await;
    }
    let mut statements = format!(
        "INSERT INTO audit_events (id, occurred_at, kind, user_id, bank, access, token_id, fingerprint)
         SELECT gen_random_uuid(), now(), 'token.minted', user_id, bank, access, id, fingerprint
         FROM tokens WHERE user_id LIKE '%-{round}' AND user_id NOT LIKE 'u-%';"
    );
    for (kind, age, _) in MINTS {
        statements += &format!(
            "INSERT INTO mints (user_id, id, country, bank, access, lifetime, lease_epoch, holder, client, request_id,
                                started_at, started_attempts)
             SELECT '{kind}-{round}', gen_random_uuid(), '', 'bank-' || n, 0, 3600, 1, 'r', 'c', 'q',
                    now() - interval '{age}', 1
             FROM generate_series(1, {ROUND}) n;"
        );
    }
    world.db.execute(AssertSqlSafe(statements)).await.unwrap();
}

/// Checks that exactly the records past retention are removed, and that the events count them.
async fn check_records(attack: &mut Attack, rounds: u32) {
    let tokens = count_by_user(attack, "tokens").await;
    let mints = count_by_user(attack, "mints").await;
    let slots = count_by_user(attack, "slots").await;
    let unknown = count_by_user(attack, "audit_events WHERE kind = 'token.mint_unknown'").await;
    let expired = count_by_user(attack, "audit_events WHERE kind = 'token.expired'").await;
    let open = count_by_user(attack, "mints WHERE outcome = 'open'").await;
    let mut check = |of: &str, counts: &HashMap<String, i64>, user: &str, is_expected: bool| {
        let expected = if is_expected { i64::from(ROUND) } else { 0 };
        let found = counts.get(user).copied().unwrap_or_default();
        attack
            .findings
            .check(Promise::I14Kept, found == expected, || {
                format!("{user}: {found} {of}, expected {expected}")
            });
    };
    for round in 0..rounds {
        for (kind, _, is_valid, is_removed, has_no_slot) in TOKENS {
            let user = format!("{kind}-{round}");
            check("tokens", &tokens, &user, !is_removed);
            check("mints", &mints, &user, !is_removed);
            check("combinations", &slots, &user, !has_no_slot);
            check("token.expired", &expired, &user, is_valid);
        }
        for (kind, _, outcome) in MINTS {
            let user = format!("{kind}-{round}");
            check("mints", &mints, &user, true);
            check("open mints", &open, &user, outcome == "open");
            check("token.mint_unknown", &unknown, &user, outcome == "unknown");
        }
    }
    for (member, kinds) in [
        ("purgedTokens", 2),
        ("purgedMints", 2),
        ("purgedCombinations", 1),
    ] {
        let expected = i64::from(kinds * ROUND * rounds);
        let recorded = count_recorded(&attack.world, member).await;
        attack
            .findings
            .check(Promise::I14Kept, recorded == expected, || {
                format!("cleanup.ran counts {recorded} of {expected} {member}")
            });
    }
}

/// Counts the rows of each user.
async fn count_by_user(attack: &Attack, rows: &str) -> HashMap<String, i64> {
    let query = format!("SELECT user_id, count(*) FROM {rows} GROUP BY user_id");
    let counts: Vec<(String, i64)> = sqlx::query_as(AssertSqlSafe(query))
        .fetch_all(&attack.world.db)
        .await
        .unwrap();
    counts.into_iter().collect()
}
