//! The state and the tiles of the sealed audit log.

use std::ops::Range;

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::TryStreamExt;
use sqlx::{Connection, PgConnection, QueryBuilder};
use uuid::Uuid;

use super::DbError;
use super::audit_events::{BEGIN, read_event};
use super::event_page::{EventFilter, EventOrder, EventPage, push_page, select};
use super::horizon::find_horizon;
use crate::model::{EventKind, EventRef};

/// The position of an event in the log. Events are sealed in the order of their positions.
pub type Position = (DateTime<Utc>, Uuid);

/// A tile of the Merkle tree.
#[derive(Clone, Debug)]
pub struct TileRow {
    /// The level of tiles, 0 for the hashes of events.
    pub level: i16,
    /// The index within the level.
    pub n: i64,
    /// The hashes, 1 to 256 of 32 bytes.
    pub hashes: Vec<u8>,
    /// The time of the event of the first hash, on level 0.
    pub first_at: Option<DateTime<Utc>>,
    /// The id of that event.
    pub first_id: Option<Uuid>,
}

/// The number of hashes in a full tile.
const WIDTH: i64 = 256;

impl TileRow {
    /// Returns the index of the entry with this hash, if the tile has it.
    pub fn find_entry(&self, hash: &[u8; 32]) -> Option<u64> {
        let mut hashes = self.hashes.chunks(hash.len());
        let offset = hashes.position(|leaf| leaf == hash)?;
        Some((self.n * WIDTH) as u64 + offset as u64)
    }
}

/// Events that are complete and not sealed yet, oldest first, and the tree that they continue.
#[derive(Debug)]
pub struct Unsealed<T> {
    /// The size of the tree.
    pub size: i64,
    /// The last tile of each level that is not full.
    pub edge: Vec<TileRow>,
    /// The result of mapping each event, and its position.
    pub events: Vec<(Position, T)>,
}

/// The tree after sealing.
#[derive(Debug)]
pub struct Sealed {
    /// The tiles that are new or longer.
    pub tiles: Vec<TileRow>,
    /// The size of the tree.
    pub size: i64,
    /// The signed head of the tree.
    pub checkpoint: String,
}

/// Seals the next events, at most `limit`, in one transaction. `map` maps each event, and `seal` appends the results to
/// the tree. Returns the new checkpoint and whether more events wait, or `None` if there is nothing to seal.
///
/// Only one transaction at a time seals: it locks the row of the log. Another one skips the locked row and returns. The
/// horizon guarantees that no event can still appear before those that are sealed. The caller must not cancel it.
pub async fn seal_events<T>(
    connection: &mut PgConnection,
    limit: i64,
    map: impl Fn(&EventRef<'_>) -> T,
    seal: impl FnOnce(Unsealed<T>) -> Result<Sealed, DbError>,
) -> Result<Option<(String, bool)>, DbError> {
    let mut transaction = connection.begin_with(BEGIN).await?;
    let log = sqlx::query!("SELECT size, last_at, last_id FROM audit_log FOR UPDATE SKIP LOCKED");
    let Some(log) = log.fetch_optional(&mut *transaction).await? else {
        return Ok(None);
    };
    let filter = EventFilter {
        to: Some(find_horizon(&mut transaction).await?),
        ..EventFilter::default()
    };
    let after = (log.size > 0).then_some((log.last_at, log.last_id));
    let events = list_events(&mut transaction, &filter, after, limit, map).await?;
    let Some(((last_at, last_id), _)) = events.last() else {
        return Ok(None);
    };
    let (last_at, last_id, has_more) = (*last_at, *last_id, events.len() as i64 == limit);
    let unsealed = Unsealed {
        size: log.size,
        edge: list_edge(&mut transaction, log.size).await?,
        events,
    };
    let Sealed {
        tiles,
        size,
        checkpoint,
    } = seal(unsealed)?;
    insert_tiles(&mut transaction, tiles).await?;
    let update = sqlx::query!(
        "UPDATE audit_log SET size = $1, last_at = $2, last_id = $3, checkpoint = $4, sealed_at = clock_timestamp()",
        size,
        last_at,
        last_id,
        checkpoint,
    );
    update.execute(&mut *transaction).await?;
    transaction.commit().await?;
    Ok(Some((checkpoint, has_more)))
}

/// Lists events in the order of the log, after a position.
pub async fn list_log_events<T>(
    connection: &mut PgConnection,
    after: Option<Position>,
    limit: i64,
    map: impl Fn(&EventRef<'_>) -> T,
) -> Result<Vec<(Position, T)>, DbError> {
    list_events(connection, &EventFilter::default(), after, limit, map).await
}

/// Lists the events that match a filter, in the order of the log, after a position.
pub(super) async fn list_events<T>(
    connection: &mut PgConnection,
    filter: &EventFilter,
    after: Option<Position>,
    limit: i64,
    map: impl Fn(&EventRef<'_>) -> T,
) -> Result<Vec<(Position, T)>, DbError> {
    let page = EventPage {
        order: EventOrder::Asc,
        after,
        limit,
        with_names: false,
    };
    let mut query = QueryBuilder::new("");
    push_page(&mut query, filter, page);
    let mut rows = query.build().fetch(&mut *connection);
    let mut events = Vec::new();
    while let Some(row) = rows.try_next().await? {
        let event = read_event(&row)?;
        events.push(((event.occurred_at, event.id), map(&event)));
    }
    Ok(events)
}

/// Lists the next `user.erased` events after a position.
pub async fn list_erasures<T>(
    connection: &mut PgConnection,
    after: Option<Position>,
    map: impl Fn(&EventRef<'_>) -> T,
) -> Result<Vec<(Position, T)>, DbError> {
    let filter = EventFilter::of_kind(EventKind::UserErased);
    list_events(connection, &filter, after, 1_000, map).await
}

/// Lists the last tile of each level that is not full.
async fn list_edge(connection: &mut PgConnection, size: i64) -> Result<Vec<TileRow>, DbError> {
    let tiles = sqlx::query_as!(
        TileRow,
        "SELECT t.level, t.n, t.hashes, t.first_at, t.first_id
         FROM audit_tiles t
         JOIN generate_series(0, 6) AS l(level) ON t.level = l.level AND t.n = $1::bigint >> (8 * (l.level + 1))",
        size
    );
    Ok(tiles.fetch_all(connection).await?)
}

async fn insert_tiles(connection: &mut PgConnection, tiles: Vec<TileRow>) -> Result<(), DbError> {
    let levels: Vec<_> = tiles.iter().map(|tile| tile.level).collect();
    let indexes: Vec<_> = tiles.iter().map(|tile| tile.n).collect();
    let times: Vec<_> = tiles.iter().map(|tile| tile.first_at).collect();
    let ids: Vec<_> = tiles.iter().map(|tile| tile.first_id).collect();
    let hashes: Vec<_> = tiles.into_iter().map(|tile| tile.hashes).collect();
    // The first event of a tile that grows stays the same.
    sqlx::query!(
        "INSERT INTO audit_tiles (level, n, hashes, first_at, first_id)
         SELECT * FROM unnest($1::int2[], $2::int8[], $3::bytea[], $4::timestamptz[], $5::uuid[])
         ON CONFLICT (level, n) DO UPDATE SET hashes = excluded.hashes",
        &levels,
        &indexes,
        &hashes,
        &times as &[Option<DateTime<Utc>>],
        &ids as &[Option<Uuid>],
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// The state of the log.
#[derive(Clone, Debug)]
pub struct LogState {
    /// The number of sealed events.
    pub size: i64,
    /// The time of the last sealed event.
    pub last_at: DateTime<Utc>,
    /// The id of the last sealed event.
    pub last_id: Uuid,
    /// The signed head of the tree.
    pub checkpoint: Option<String>,
    /// The time of the checkpoint.
    pub sealed_at: Option<DateTime<Utc>>,
}

/// Returns the state of the log.
pub async fn find_log(connection: &mut PgConnection) -> Result<LogState, DbError> {
    let log = sqlx::query_as!(
        LogState,
        "SELECT size, last_at, last_id, checkpoint, sealed_at FROM audit_log"
    );
    Ok(log.fetch_one(connection).await?)
}

/// Lists the tiles of level 0 with these indexes, in their order.
pub async fn list_tiles_of_events(
    connection: &mut PgConnection,
    indexes: Range<i64>,
) -> Result<Vec<TileRow>, DbError> {
    let tiles = sqlx::query_as!(
        TileRow,
        "SELECT level, n, hashes, first_at, first_id FROM audit_tiles
         WHERE level = 0 AND n >= $1 AND n < $2 ORDER BY n",
        indexes.start,
        indexes.end,
    );
    Ok(tiles.fetch_all(connection).await?)
}

/// Lists the tiles above level 0.
pub async fn list_upper_tiles(connection: &mut PgConnection) -> Result<Vec<TileRow>, DbError> {
    let tiles = sqlx::query_as!(
        TileRow,
        "SELECT level, n, hashes, first_at, first_id FROM audit_tiles WHERE level > 0"
    );
    Ok(tiles.fetch_all(connection).await?)
}

/// Lists the next tokens, oldest first, after a position, with whether the event of the mint has the same data.
pub async fn compare_tokens(
    connection: &mut PgConnection,
    (at, id): Position,
    limit: i64,
) -> Result<Vec<(Position, bool)>, DbError> {
    let tokens = sqlx::query!(
        r#"SELECT t.issued_at, t.id, EXISTS (
               SELECT FROM audit_events e
               WHERE e.user_id = t.user_id AND e.occurred_at = t.issued_at AND e.token_id = t.id
                 AND e.kind = 'token.minted' AND coalesce(e.fingerprint, '') = t.fingerprint AND e.access = t.access
                 AND coalesce(e.country, '') = t.country AND coalesce(e.bank, '') = t.bank
           ) AS "is_equal!"
           FROM tokens t WHERE (t.issued_at, t.id) > ($1, $2) ORDER BY t.issued_at, t.id LIMIT $3"#,
        at,
        id,
        limit,
    );
    let tokens = tokens.fetch_all(connection).await?;
    let compared = tokens
        .into_iter()
        .map(|token| ((token.issued_at, token.id), token.is_equal));
    Ok(compared.collect())
}

/// Lists the next events of mints, oldest first, after a position, with whether the token exists.
pub async fn compare_mints(
    connection: &mut PgConnection,
    (at, id): Position,
    limit: i64,
) -> Result<Vec<(Position, bool)>, DbError> {
    let events = sqlx::query!(
        r#"SELECT e.occurred_at, e.id, EXISTS (
               SELECT FROM tokens t WHERE t.user_id = e.user_id AND t.id = e.token_id
           ) AS "has_token!"
           FROM audit_events e
           WHERE e.kind = 'token.minted' AND e.occurred_at >= $1 AND (e.occurred_at, e.id) > ($1, $2)
           ORDER BY e.kind, e.occurred_at, e.id LIMIT $3"#,
        at,
        id,
        limit,
    );
    let events = events.fetch_all(connection).await?;
    let compared = events
        .into_iter()
        .map(|event| ((event.occurred_at, event.id), event.has_token));
    Ok(compared.collect())
}

/// Returns the checkpoint of the log. `None` before the first event is sealed.
pub async fn find_checkpoint(connection: &mut PgConnection) -> Result<Option<String>, DbError> {
    let checkpoint = sqlx::query_scalar!("SELECT checkpoint FROM audit_log");
    Ok(checkpoint.fetch_one(connection).await?)
}

/// Returns the age of the oldest event that is not sealed, in seconds. 0 if all are sealed.
///
/// If a wrong clock dated the last sealed event ahead, nothing can be sealed until that time. The lag is then the wait.
pub async fn find_lag(connection: &mut PgConnection) -> Result<f64, DbError> {
    // The condition on the time alone excludes partitions, which that on both does not.
    let lag = sqlx::query_scalar!(
        r#"SELECT greatest(0, extract(epoch FROM l.last_at - clock_timestamp()), extract(epoch FROM clock_timestamp() - (
               SELECT e.occurred_at FROM audit_events e
               WHERE e.occurred_at >= (SELECT last_at FROM audit_log)
                 AND (e.occurred_at, e.id) > (SELECT last_at, last_id FROM audit_log)
               ORDER BY e.occurred_at, e.id LIMIT 1)))::float8 AS "lag!"
           FROM audit_log l"#
    );
    Ok(lag.fetch_one(connection).await?)
}

/// Lists the tiles with these levels and indexes.
pub async fn list_tiles(
    connection: &mut PgConnection,
    keys: &[(i16, i64)],
) -> Result<Vec<TileRow>, DbError> {
    let (levels, indexes): (Vec<_>, Vec<_>) = keys.iter().copied().unzip();
    let tiles = sqlx::query_as!(
        TileRow,
        "SELECT level, n, hashes, first_at, first_id FROM audit_tiles
         WHERE (level, n) IN (SELECT * FROM unnest($1::int2[], $2::int8[]))",
        &levels,
        &indexes,
    );
    Ok(tiles.fetch_all(connection).await?)
}

/// Finds the tile of level 0 that has the hash of the event at this position, if the event is sealed.
pub async fn find_tile_of_event(
    connection: &mut PgConnection,
    (at, id): Position,
) -> Result<Option<TileRow>, DbError> {
    let tile = sqlx::query_as!(
        TileRow,
        "SELECT level, n, hashes, first_at, first_id FROM audit_tiles
         WHERE level = 0 AND (first_at, first_id) <= ($1, $2) ORDER BY first_at DESC, first_id DESC LIMIT 1",
        at,
        id,
    );
    Ok(tile.fetch_optional(connection).await?)
}

/// Lists the events of a tile of level 0, at most `limit`, in the order of the log.
pub async fn list_events_of_tile<T>(
    connection: &mut PgConnection,
    tile: &TileRow,
    limit: i64,
    map: impl Fn(&EventRef<'_>) -> T,
) -> Result<Vec<(Position, T)>, DbError> {
    let Some((at, id)) = tile.first_at.zip(tile.first_id) else {
        return Ok(Vec::new());
    };
    list_log_events(connection, Some(just_before((at, id))), limit, map).await
}

/// Returns the position just before an entry, for a read of the entries from there. The inner `None` stands for the
/// start. Returns `None` if retention deleted the event of the entry.
pub async fn find_position(
    connection: &mut PgConnection,
    entry: i64,
) -> Result<Option<Option<Position>>, DbError> {
    let log = find_log(connection).await?;
    if entry == log.size {
        return Ok(Some((log.size > 0).then_some((log.last_at, log.last_id))));
    }
    let (n, skip) = (entry / WIDTH, entry % WIDTH);
    let tile = list_tiles(connection, &[(0, n)]).await?.pop();
    let Some(tile) = tile else { return Ok(None) };
    let events = list_events_of_tile(connection, &tile, skip + 1, |_| ()).await?;
    let first = events.first().map(|(first, ())| *first);
    let is_kept = first == tile.first_at.zip(tile.first_id) && events.len() as i64 == skip + 1;
    let event = events.last().filter(|_| is_kept);
    Ok(event.map(|(position, ())| Some(just_before(*position))))
}

/// Returns the last position before this one.
pub fn just_before((at, id): Position) -> Position {
    (at, Uuid::from_u128(id.as_u128().saturating_sub(1)))
}

/// Finds an event by its id.
///
/// The id is a UUIDv7. Its time must be within a minute of the event's time. An event of an earlier version may have
/// another kind of id, unless it is a handout.
pub async fn find_event<T>(
    connection: &mut PgConnection,
    id: Uuid,
    map: impl FnOnce(&EventRef<'_>) -> T,
) -> Result<Option<(Position, T)>, DbError> {
    let made_at = id.get_timestamp().and_then(|at| {
        let (seconds, nanos) = at.to_unix();
        DateTime::from_timestamp(i64::try_from(seconds).ok()?, nanos)
    });
    let mut query = QueryBuilder::new(select(true));
    query.push(" WHERE id = ").push_bind(id);
    match made_at {
        Some(made_at) => {
            query.push(" AND occurred_at BETWEEN ");
            query
                .push_bind(made_at - TimeDelta::minutes(1))
                .push(" AND ");
            query.push_bind(made_at + TimeDelta::minutes(1));
        }
        None => {
            // The condition of the index `audit_events_by_random_id`.
            query.push(" AND kind <> 'token.reused' AND substr(id::text, 15, 1) <> '7'");
        }
    }
    let row = query.build().fetch_optional(connection).await?;
    let Some(row) = row else { return Ok(None) };
    let event = read_event(&row)?;
    Ok(Some(((event.occurred_at, event.id), map(&event))))
}
