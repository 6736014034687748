//! Which token does for which order.

use super::*;
use crate::model::{Access, Token, TokenString};

const MIN_REMAINING: Duration = Duration::from_secs(60);

fn order(lifetime: i32, min_fresh: Option<i32>, renew: bool) -> Order {
    Order {
        combination: Combination {
            user_id: "u".into(),
            country: None,
            bank: None,
            access: Access::default(),
        },
        lifetime,
        min_fresh,
        renew,
    }
}

fn token(life: u64, lifetime: i32, now: Instant, minted_at: Option<Instant>) -> CachedToken {
    let time = chrono::Utc::now();
    CachedToken {
        issued: Issued {
            token: Token {
                id: Uuid::now_v7(),
                combination: order(0, None, false).combination,
                expiration: time,
                ends_at: time,
                issued_at: time,
                lifetime,
                is_valid: true,
                invalidated_at: None,
                invalidation_reason: None,
                fingerprint: String::new(),
            },
            token_string: TokenString::new("t".into()),
        },
        deadline: now + Duration::from_secs(life),
        minted_at,
    }
}

#[test]
fn a_token_on_record_needs_the_life_that_the_rule_or_the_caller_asks() {
    let placed = Instant::now();
    // (life left, lifetime asked, min-fresh, does)
    for (life, lifetime, min_fresh, does) in [
        (61, 3600, None, true),
        (60, 3600, None, false),
        (59, 3600, None, false),
        // Half of a short lifetime is less than a minute.
        (6, 10, None, true),
        (5, 10, None, false),
        (1, 0, None, true),
        (0, 0, None, false),
        // min-fresh counts where it is the larger.
        (61, 3600, Some(10), true),
        (60, 3600, Some(10), false),
        (301, 3600, Some(300), true),
        (300, 3600, Some(300), false),
    ] {
        let order = order(lifetime, min_fresh, false);
        let token = token(life, 3600, placed, None);
        let accepted = order.accepts(&token, placed, placed, MIN_REMAINING);
        assert_eq!(
            accepted.is_some(),
            does,
            "{life} of {lifetime}, {min_fresh:?}"
        );
        if let Some(min_life) = accepted {
            assert_eq!(min_life, order.min_life(MIN_REMAINING));
        }
    }
}

#[test]
fn a_token_minted_meanwhile_is_not_asked_for_more_life() {
    let placed = Instant::now();
    let later = placed + Duration::from_secs(1);
    let short = token(1, 2, later, Some(later));
    let accepts = |order: Order| order.accepts(&short, placed, later, MIN_REMAINING);
    assert_eq!(accepts(order(2, None, false)), Some(Duration::ZERO));
    assert_eq!(accepts(order(3600, None, false)), Some(Duration::ZERO));
    assert_eq!(accepts(order(2, Some(2), false)), Some(Duration::ZERO));
    assert_eq!(accepts(order(2, None, true)), Some(Duration::ZERO));
    // It was minted for less than this one insists on.
    assert_eq!(accepts(order(3600, Some(3), false)), None);
    // And a request placed after it is a new one.
    let after = later + Duration::from_millis(1);
    assert_eq!(
        order(2, None, false).accepts(&short, after, after, MIN_REMAINING),
        None
    );
}

#[test]
fn renewing_passes_over_what_was_there_before() {
    let placed = Instant::now();
    let earlier = placed.checked_sub(Duration::from_secs(1));
    for minted_at in [None, earlier, Some(placed)] {
        let token = token(3600, 3600, placed, minted_at);
        assert_eq!(
            order(3600, None, true).accepts(&token, placed, placed, MIN_REMAINING),
            None
        );
    }
}
