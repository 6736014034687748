//! `/audit/log/`: the sealed audit log, as c2sp.org/tlog-tiles defines it, and the proof of one event.

use actix_web::http::Method;
use actix_web::http::header::ContentType;
use actix_web::{HttpRequest, HttpResponse, web};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::{Serialize, Serializer};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::api::extract::authorization::{AuditRead, Authorized};
use crate::api::extract::query::reject_parameters;
use crate::api::handlers::audit::record_read;
use crate::api::problem::{Problem, ProblemKind};
use crate::api::state::ApiState;
use crate::db::audit_events::AuditReadRecord;
use crate::db::audit_log::{
    find_checkpoint, find_event, find_log, find_tile_of_event, list_events_of_tile, list_tiles,
};
use crate::db::{Checkout, DbError, Lane, PgConnection};
use crate::model::event_format::push_json;
use crate::model::{Caller, EventRef};
use crate::seal::checkpoint::open_checkpoint;
use crate::seal::tree::{
    Hash, Tile, TilePath, check_inclusion, hash_entry, list_tiles_of_proof, prove_inclusion,
};

const HASH: usize = size_of::<Hash>();

/// `GET /audit/log/checkpoint`. Returns the signed head of the log.
pub async fn get_checkpoint(
    _: Authorized<AuditRead>,
    request: HttpRequest,
    state: web::Data<ApiState>,
) -> Result<HttpResponse, Problem> {
    reject_parameters(request.query_string())?;
    let find = async |mut connection: Checkout| find_checkpoint(&mut connection).await;
    let checkpoint = state.reads().run(Lane::Reads, find).await?;
    let checkpoint = checkpoint.ok_or_else(|| Problem::not_found("no event is sealed"))?;
    Ok(HttpResponse::Ok()
        .content_type(ContentType::plaintext())
        .body(checkpoint))
}

/// Records a read of events before it happens. `HEAD` returns none and is not recorded.
async fn record(
    state: &ApiState,
    request: &HttpRequest,
    caller: Caller,
    detail: Value,
) -> Result<(), DbError> {
    if request.method() == Method::HEAD {
        return Ok(());
    }
    let caller = Some(caller);
    record_read(&state.db, AuditReadRecord { caller, detail }).await?;
    Ok(())
}

/// `GET /audit/log/tile/{tile}`. Returns the hashes of a tile, or the entries of a tile of level 0.
///
/// A read of entries is recorded as an `audit.read` event. Hashes say nothing about anybody.
pub async fn get_tile(
    authorized: Authorized<AuditRead>,
    request: HttpRequest,
    path: web::Path<String>,
    state: web::Data<ApiState>,
) -> Result<HttpResponse, Problem> {
    reject_parameters(request.query_string())?;
    let not_found = || Problem::not_found("the log has no such tile");
    let tile = TilePath::parse(&path).ok_or_else(not_found)?;
    if tile.level.is_none() {
        let detail = json!({"tile": *path});
        record(&state, &request, authorized.into_caller(), detail).await?;
    }
    let read = async move |mut connection: Checkout| read_tile(&mut connection, tile).await;
    let bytes = state.reads().run(Lane::Reads, read).await?;
    Ok(HttpResponse::Ok()
        .content_type(ContentType::octet_stream())
        .body(bytes.ok_or_else(not_found)?))
}

/// Reads the content of a tile. Returns `None` if the log is shorter, or an event of a bundle was deleted by retention.
///
/// A bundle has the events as they are now. The hashes show which one was redacted or changed.
async fn read_tile(
    connection: &mut PgConnection,
    path: TilePath,
) -> Result<Option<Vec<u8>>, DbError> {
    let Ok(n) = i64::try_from(path.n) else {
        return Ok(None);
    };
    let key = (i16::from(path.level.unwrap_or(0)), n);
    let length = path.width as usize * HASH;
    let tile = list_tiles(connection, &[key]).await?.pop();
    let Some(tile) = tile.filter(|tile| tile.hashes.len() >= length) else {
        return Ok(None);
    };
    if path.level.is_some() {
        return Ok(Some(tile.hashes[..length].to_vec()));
    }
    let events = list_events_of_tile(connection, &tile, path.width as i64, entry).await?;
    let mut bundle = Vec::new();
    for (_, entry) in &events {
        let Ok(length) = u16::try_from(entry.len()) else {
            return Ok(None);
        };
        bundle.extend(length.to_be_bytes());
        bundle.extend(entry);
    }
    Ok((events.len() as u64 == path.width).then_some(bundle))
}

/// Returns the entry of an event: the line of an export without its line end.
fn entry(event: &EventRef<'_>) -> Vec<u8> {
    let mut entry = Vec::new();
    push_json(&mut entry, event);
    entry
}

/// The proof that the log contains an event.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ProofView {
    /// The index of the entry. The first one has 0.
    pub leaf_index: u64,
    /// The exact bytes that the log contains.
    entry: String,
    /// The hashes of the inclusion proof (RFC 6962, section 2.1.1), in base64.
    #[serde(serialize_with = "serialize_hashes")]
    proof: Vec<Hash>,
    /// The signed head of the log.
    pub checkpoint: String,
}

fn serialize_hashes<S: Serializer>(hashes: &[Hash], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(hashes.iter().map(|hash| BASE64_STANDARD.encode(hash)))
}

/// The reason why there is no proof of an event.
#[derive(Debug, thiserror::Error)]
pub enum NoProof {
    /// There is no such event.
    #[error("no event has this id")]
    Unknown,
    /// A later checkpoint will contain the event.
    #[error("the event is not sealed")]
    NotSealed,
    /// The event or the log was changed after the event was sealed.
    #[error("{0}")]
    Changed(&'static str),
}

/// `GET /audit/events/{id}/proof`. Returns the proof that the log contains the event.
///
/// The read is recorded as an `audit.read` event.
pub async fn get_proof(
    authorized: Authorized<AuditRead>,
    request: HttpRequest,
    id: web::Path<Uuid>,
    state: web::Data<ApiState>,
) -> Result<HttpResponse, Problem> {
    reject_parameters(request.query_string())?;
    let id = id.into_inner();
    record(
        &state,
        &request,
        authorized.into_caller(),
        json!({"proof": id}),
    )
    .await?;
    let read = async move |mut connection: Checkout| read_proof(&mut connection, id).await;
    match state.reads().run(Lane::Reads, read).await? {
        Ok((proof, _)) => Ok(HttpResponse::Ok().json(proof)),
        Err(why) => Err(Problem::new(ProblemKind::NotFound, why.to_string())),
    }
}

/// Reads the proof of an event and the size of its tree, and checks that it leads to the root in the checkpoint. The
/// inner error says why there is no proof.
pub async fn read_proof(
    connection: &mut PgConnection,
    id: Uuid,
) -> Result<Result<(ProofView, u64), NoProof>, DbError> {
    let changed = |what| Ok(Err(NoProof::Changed(what)));
    let Some((position, entry)) = find_event(connection, id, entry).await? else {
        return Ok(Err(NoProof::Unknown));
    };
    let log = find_log(connection).await?;
    let Some(checkpoint) = log
        .checkpoint
        .filter(|_| position <= (log.last_at, log.last_id))
    else {
        return Ok(Err(NoProof::NotSealed));
    };
    let Ok(head) = open_checkpoint(&checkpoint, None) else {
        return changed("the checkpoint of the sealed log cannot be read");
    };
    let hash = hash_entry(&entry);
    let tile = find_tile_of_event(connection, position).await?;
    let Some(leaf_index) = tile.and_then(|tile| tile.find_entry(&hash)) else {
        return changed("the sealed log has another entry in the place of this event");
    };
    let keys = list_tiles_of_proof(head.size, leaf_index).unwrap_or_default();
    let keys: Vec<_> = keys
        .iter()
        .map(|(level, n)| (i16::from(*level), *n as i64))
        .collect();
    let tiles = list_tiles(connection, &keys).await?;
    let tiles: Vec<_> = tiles.into_iter().map(Tile::from).collect();
    let Some(proof) = prove_inclusion(head.size, leaf_index, &tiles)
        .filter(|proof| check_inclusion(proof, head.size, head.root, leaf_index, hash))
    else {
        return changed("the hashes of the sealed log do not lead to the root in its checkpoint");
    };
    let proof = ProofView {
        leaf_index,
        entry: String::from_utf8(entry).expect("an entry is JSON"),
        proof,
        checkpoint,
    };
    Ok(Ok((proof, head.size)))
}
