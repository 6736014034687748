//! Random concurrent claims, finishes, failures, invalidations and takeovers by two replicas. The database must be
//! consistent afterwards.

use std::time::{Duration, Instant};

use chrono::{TimeDelta, Utc};
use futures_util::future::join_all;
use sqlx::PgPool;
use token_vendor::crypto::EncryptedToken;
use token_vendor::db::handouts::{HandoutRow, insert_handouts};
use token_vendor::db::mints::{
    CallSummary, Claim, FailedMint, Finish, Lease, claim_mint, fail_mint, finish_mint,
    start_attempt,
};
use token_vendor::db::slots::{find_slot, point_slot};
use token_vendor::model::{Access, Caller, Combination, Failure, FailureKind};
use uuid::Uuid;

use crate::support::World;

const RUN: Duration = Duration::from_secs(20);
const COMBINATIONS: u32 = 3;

fn combination(n: u32) -> Combination {
    Combination {
        user_id: "u-1".into(),
        country: None,
        bank: Some(format!("bank-{n}").into()),
        access: Access::default(),
    }
}

fn caller() -> Caller {
    Caller {
        client: "chaos".into(),
        request_id: Uuid::new_v4().to_string(),
        source_ip: None,
    }
}

/// Sleeps for less than `max_ms` milliseconds. Some sleeps exceed the lease of 30 ms.
async fn sleep_randomly(max_ms: u64) {
    tokio::time::sleep(Duration::from_millis(fastrand::u64(0..max_ms))).await;
}

/// Reads the slot and tries to claim a mint, as a flight does.
async fn claim(db: &PgPool, combination: &Combination, replica: Uuid) -> Option<(Claim, Lease)> {
    let min_life = Duration::from_millis(fastrand::u64(0..40));
    let slot = find_slot(
        &mut db.acquire().await.unwrap(),
        combination,
        Utc::now() - TimeDelta::days(1),
        min_life,
    )
    .await
    .unwrap();
    sleep_randomly(5).await;
    let claim = Claim {
        mint_id: Uuid::now_v7(),
        combination: combination.clone(),
        lifetime: 1,
        replica,
        caller: caller(),
        now: slot.now,
        lease_until: slot.now + TimeDelta::milliseconds(30),
        fresh_until: slot.now + min_life,
        renew_since: fastrand::bool().then_some(slot.minted_seq),
    };
    let lease = claim_mint(&mut db.acquire().await.unwrap(), &claim)
        .await
        .unwrap()?;
    Some((claim, lease))
}

/// Runs one random action of a replica, with random delays.
async fn run_random_action(db: &PgPool, replica: Uuid) {
    let combination = combination(fastrand::u32(0..COMBINATIONS));
    match fastrand::u32(0..10) {
        0 => {
            let lower_bound = Utc::now() - TimeDelta::days(1);
            point_slot(
                &mut db.acquire().await.unwrap(),
                &combination,
                lower_bound,
                Duration::from_millis(20),
            )
            .await
            .unwrap();
        }
        1 => {
            // Only one row, because updates of several rows in random order deadlock.
            let invalidate = "UPDATE tokens SET is_valid = false WHERE user_id = 'u-1' AND id =
                           (SELECT id FROM tokens WHERE bank = $1 AND is_valid ORDER BY random() LIMIT 1)";
            sqlx::query(invalidate)
                .bind(combination.bank_key())
                .execute(db)
                .await
                .unwrap();
        }
        2 => hand_out(db, &combination).await,
        _ => {
            let Some((claim, lease)) = claim(db, &combination, replica).await else {
                return sleep_randomly(10).await;
            };
            sleep_randomly(20).await;
            match fastrand::u32(0..10) {
                // The replica crashes before its call.
                0 => return,
                // Another replica closed the mint, so there must be no call.
                _ if !start_attempt(&mut db.acquire().await.unwrap(), &claim, 1)
                    .await
                    .unwrap() =>
                {
                    return;
                }
                _ => sleep_randomly(40).await,
            }
            match fastrand::u32(0..10) {
                // The replica crashes without finishing the mint.
                0 => {}
                1 | 2 => {
                    let failed = FailedMint {
                        claim,
                        failure: Failure::new(FailureKind::UpstreamFailed, "chaos"),
                        is_unknown: fastrand::bool(),
                        calls: CallSummary::default(),
                        cooldown_until: Utc::now() + TimeDelta::milliseconds(10),
                    };
                    fail_mint(&mut db.acquire().await.unwrap(), &failed)
                        .await
                        .unwrap();
                }
                _ => finish(db, claim, lease).await,
            }
        }
    }
}

async fn finish(db: &PgPool, claim: Claim, lease: Lease) {
    let life = TimeDelta::milliseconds(fastrand::i64(0..300));
    let finish = Finish {
        expiration: lease.claimed_at + life,
        ends_at: lease.claimed_at + life,
        encrypted: EncryptedToken {
            bytes: vec![1],
            key_id: "k".into(),
        },
        fingerprint: std::array::from_fn(|n| claim.mint_id.as_bytes()[n % 16]).into(),
        calls: CallSummary::default(),
        lower_bound: lease.claimed_at,
        claim,
        lease,
    };
    // Some statements run twice, as after a lost COMMIT.
    for _ in 0..fastrand::u32(1..3) {
        finish_mint(&mut db.acquire().await.unwrap(), &finish)
            .await
            .unwrap()
            .expect("no slot is deleted");
    }
}

async fn hand_out(db: &PgPool, combination: &Combination) {
    let lower_bound = Utc::now() - TimeDelta::days(1);
    let slot = find_slot(
        &mut db.acquire().await.unwrap(),
        combination,
        lower_bound,
        Duration::ZERO,
    )
    .await
    .unwrap();
    let Some(stored) = slot.pointer else { return };
    let row = HandoutRow {
        event_id: Uuid::now_v7(),
        occurred_at: slot.now,
        user_id: &combination.user_id,
        token_id: stored.token.id,
        caller: &caller(),
        min_life: Duration::ZERO,
    };
    insert_handouts(&mut db.acquire().await.unwrap(), &[row], lower_bound)
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn random_concurrent_mints_leave_the_database_consistent() {
    let world = World::new().await;
    let ends = Instant::now() + RUN;
    let pool = || {
        sqlx::postgres::PgPoolOptions::new()
            .max_connections(8)
            .connect(&world.url)
    };
    let replicas = [
        (pool().await.unwrap(), Uuid::new_v4()),
        (pool().await.unwrap(), Uuid::new_v4()),
    ];
    let flights = (0..16).map(|n| {
        let (db, replica) = replicas[n % 2].clone();
        tokio::spawn(async move {
            while Instant::now() < ends {
                run_random_action(&db, replica).await;
            }
        })
    });
    for flight in join_all(flights).await {
        flight.unwrap();
    }

    // The next claim closes the mints that crashed replicas left open.
    for n in 0..COMBINATIONS {
        while claim(&world.db, &combination(n), Uuid::new_v4())
            .await
            .is_none()
        {}
        while let Some((claim, lease)) = claim(&world.db, &combination(n), Uuid::new_v4()).await {
            let mut connection = world.db.acquire().await.unwrap();
            let is_started = start_attempt(&mut connection, &claim, 1).await.unwrap();
            assert!(is_started, "the mint has the lease");
            finish(&world.db, claim, lease).await;
        }
    }
    let deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()";
    assert_eq!(world.count(deadlocks).await, 0);
    let open = "SELECT count(*) FROM mints m WHERE outcome = 'open'
                AND lease_epoch < (SELECT max(lease_epoch) FROM slots s WHERE s.bank = m.bank)";
    assert_eq!(world.count(open).await, 0);
    let inconsistent_slots = "SELECT count(*) FROM slots s JOIN tokens t ON t.user_id = s.user_id AND t.id = s.token_id
                       WHERE t.superseded_at IS NOT NULL OR s.usable_until NOT IN (t.ends_at, '-infinity')";
    assert_eq!(world.count(inconsistent_slots).await, 0);
    let without_slot = "SELECT count(*) FROM tokens t WHERE superseded_at IS NULL AND is_valid
                        AND NOT EXISTS (SELECT FROM slots s WHERE s.token_id = t.id)";
    assert_eq!(world.count(without_slot).await, 0);
    let minted = world
        .count("SELECT count(*) FROM mints WHERE outcome = 'minted'")
        .await;
    assert!(minted > 200, "only {minted} mints");
    let unmatched = "SELECT count(*) FROM tokens t FULL JOIN (SELECT * FROM mints WHERE outcome = 'minted') m USING (id)
                  WHERE t.id IS NULL OR m.id IS NULL";
    assert_eq!(world.count(unmatched).await, 0);
    let surplus = world
        .count("SELECT count(*) FROM audit_events WHERE detail ? 'surplus'")
        .await;
    assert!(surplus > 0, "no mint finished after its lease");
    let minted_twice =
        "SELECT count(*) FROM (SELECT 1 FROM audit_events WHERE kind = 'token.minted'
                 GROUP BY token_id HAVING count(*) > 1) x";
    assert_eq!(world.count(minted_twice).await, 0);
}
