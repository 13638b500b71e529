//! The queries on bodies and their dictionaries.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use parking_lot::RwLock;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::codec::{self, BodyError, BodyParts};
use super::dictionary::{BodyDictionary, SharedContent};
use crate::base::id::{EventId, TenantId};
use crate::db::{Database, Error};
use crate::tenants::lane::lane_column;

/// The most rows in `body_dictionaries`. Apple signs with one certificate chain for years.
const MAX_DICTIONARIES: usize = 1000;

/// A stored body.
#[derive(Clone, Debug)]
pub(crate) struct EncodedBody {
    /// The event's `sequence`.
    pub(crate) sequence: Option<i64>,
    pub(crate) stored: Vec<u8>,
}

/// The texts of bodies, without events that were not found.
pub(crate) type BodiesByEvent = HashMap<EventId, Result<String, BodyError>>;

struct BodyRow {
    tenant: TenantId,
    id: EventId,
    sequence: Option<i64>,
    stored: Vec<u8>,
}

/// Encodes and decodes bodies with the dictionaries of a database. Clones share a cache of dictionaries.
#[derive(Clone, Debug)]
pub(crate) struct BodyStore {
    database: Database,
    dictionaries: Arc<RwLock<KnownDictionaries>>,
}

/// The cache. It needs no invalidation: rows of `body_dictionaries` never change and are never deleted.
#[derive(Debug, Default)]
struct KnownDictionaries {
    by_id: HashMap<i32, Arc<BodyDictionary>>,
    /// By the hash of the content. `None`: the table was full.
    by_hash: HashMap<[u8; 32], Option<Arc<BodyDictionary>>>,
}

impl BodyStore {
    pub(crate) fn new(database: &Database) -> Self {
        Self {
            database: database.clone(),
            dictionaries: Arc::default(),
        }
    }

    /// Encodes a body. `shared` is what it has in common with other bodies; if no dictionary has it as its content, one is
    /// stored.
    pub(crate) async fn encode(
        &self,
        parts: BodyParts<'_>,
        shared: Option<&SharedContent>,
    ) -> Result<Vec<u8>, Error> {
        let dictionary = match shared {
            None => None,
            Some(shared) => self.find_or_add_dictionary(shared).await?,
        };
        let dictionary = dictionary.as_deref();
        Ok(codec::encode_body(
            parts,
            dictionary.unwrap_or(BodyDictionary::built_in()),
        ))
    }

    /// `None`: the table is full.
    async fn find_or_add_dictionary(
        &self,
        shared: &SharedContent,
    ) -> Result<Option<Arc<BodyDictionary>>, Error> {
        if let Some(known) = self.dictionaries.read().by_hash.get(&shared.hash) {
            return Ok(known.clone());
        }
        let mut id = self.find_dictionary_id(shared).await?;
        if id.is_none() {
            sqlx::query!(
                "insert into body_dictionaries (content_hash, content)
                 select $1, $2 where (select count(*) from body_dictionaries) < $3
                 on conflict (content_hash) do nothing",
                &shared.hash,
                &shared.content,
                i64::try_from(MAX_DICTIONARIES).unwrap_or(i64::MAX),
            )
            .execute(self.database.pool())
            .await?;
            // In its own statement, which also sees the row that another process has inserted meanwhile.
            id = self.find_dictionary_id(shared).await?;
        }
        let dictionary = id.map(|id| Arc::new(BodyDictionary::new(id, shared.content.clone())));
        let mut known = self.dictionaries.write();
        if known.by_hash.len() < MAX_DICTIONARIES {
            known.by_hash.insert(shared.hash, dictionary.clone());
        }
        Ok(dictionary)
    }

    async fn find_dictionary_id(&self, shared: &SharedContent) -> Result<Option<i32>, Error> {
        sqlx::query_scalar!(
            "select id from body_dictionaries where content_hash = $1",
            &shared.hash,
        )
        .fetch_optional(self.database.pool())
        .await
    }

    /// The bodies of events of a tenant. An event that the tenant does not have is missing in the result.
    pub(crate) async fn load_bodies(
        &self,
        tenant: &TenantId,
        events: &[String],
    ) -> Result<BodiesByEvent, Error> {
        let lane = lane_column(tenant);
        let lanes = vec![lane; events.len()];
        let mut rows = self.load_rows(Some(lane), &lanes, events).await?;
        rows.retain(|row| row.tenant == *tenant);
        self.decode_rows(rows).await
    }

    /// The bodies of events of several tenants, with the lane of each. An event that does not exist is missing in the result.
    /// `only_lane`: see [`LaneGroup`](crate::db::distribution::LaneGroup).
    pub(in crate::deliveries) async fn load_bodies_of_lanes(
        &self,
        only_lane: Option<i16>,
        lanes: &[i16],
        events: &[String],
    ) -> Result<BodiesByEvent, Error> {
        let rows = self.load_rows(only_lane, lanes, events).await?;
        self.decode_rows(rows).await
    }

    async fn load_rows(
        &self,
        only_lane: Option<i16>,
        lanes: &[i16],
        events: &[String],
    ) -> Result<Vec<BodyRow>, Error> {
        sqlx::query_as!(
            BodyRow,
            r#"
            select event.tenant_id as "tenant: TenantId", event.id as "id: EventId", event.sequence,
                event.stored_body as stored
            from unnest($1::int2[], $2::text[]) as wanted (lane, id)
            join webhook_events event on event.lane = wanted.lane and event.id = wanted.id
                and ($3::int2 is null or event.lane = $3)
            "#,
            lanes,
            events,
            only_lane,
        )
        .fetch_all(self.database.pool())
        .await
    }

    async fn decode_rows(&self, rows: Vec<BodyRow>) -> Result<BodiesByEvent, Error> {
        self.load_dictionaries(rows.iter().map(|row| row.stored.as_slice()))
            .await?;
        let texts = rows.into_iter().map(|row| {
            let body = EncodedBody {
                sequence: row.sequence,
                stored: row.stored,
            };
            (row.id, self.decode(&body))
        });
        Ok(texts.collect())
    }

    /// Loads the dictionaries that these bodies need and that are not cached.
    async fn load_dictionaries(&self, bodies: impl Iterator<Item = &[u8]>) -> Result<(), Error> {
        let missing: Vec<i32> = {
            let known = self.dictionaries.read();
            let required: BTreeSet<i32> = bodies.filter_map(codec::required_dictionary).collect();
            let missing = required.into_iter();
            missing.filter(|id| !known.by_id.contains_key(id)).collect()
        };
        if missing.is_empty() {
            return Ok(());
        }
        let rows = sqlx::query!(
            "select id, content from body_dictionaries where id = any($1)",
            &missing
        )
        .fetch_all(self.database.pool())
        .await?;
        self.keep(rows.into_iter().map(|row| (row.id, row.content)));
        Ok(())
    }

    /// Loads all dictionaries, for [`BodyStore::decode`].
    pub(crate) async fn load_all_dictionaries(&self) -> Result<(), Error> {
        let rows = sqlx::query!("select id, content from body_dictionaries")
            .fetch_all(self.database.pool())
            .await?;
        self.keep(rows.into_iter().map(|row| (row.id, row.content)));
        Ok(())
    }

    fn keep(&self, dictionaries: impl Iterator<Item = (i32, Vec<u8>)>) {
        let mut known = self.dictionaries.write();
        for (id, content) in dictionaries {
            known
                .by_id
                .entry(id)
                .or_insert_with(|| Arc::new(BodyDictionary::new(id, content)));
        }
    }

    /// Decodes a body whose dictionary is cached.
    pub(crate) fn decode(&self, body: &EncodedBody) -> Result<String, BodyError> {
        let dictionary = codec::required_dictionary(&body.stored)
            .and_then(|id| self.dictionaries.read().by_id.get(&id).cloned());
        codec::decode_body(&body.stored, body.sequence, dictionary.as_deref())
    }
}

/// Why the body of an event was not loaded.
#[derive(Debug, thiserror::Error)]
pub enum EventBodyError {
    /// The database failed.
    #[error("{}", crate::db::describe_cause(.0))]
    Database(#[from] Error),
    /// The stored body cannot be decoded.
    #[error("{event}: {cause}")]
    Unreadable {
        /// The event whose body it is.
        event: EventId,
        /// What is wrong with the stored bytes.
        cause: BodyError,
    },
}

/// The body of an event. `None`: the tenant has no such event.
pub async fn load_event_body(
    database: &Database,
    tenant: &TenantId,
    event: &EventId,
) -> Result<Option<String>, EventBodyError> {
    let bodies = BodyStore::new(database);
    let mut found = bodies.load_bodies(tenant, &[event.to_string()]).await?;
    let text = found.remove(event).transpose();
    text.map_err(|cause| EventBodyError::Unreadable {
        event: event.clone(),
        cause,
    })
}

/// The notification in a body, byte for byte as the store sent it.
pub fn raw_message(body: &str) -> Option<&str> {
    #[derive(Deserialize)]
    struct Body<'a> {
        #[serde(borrow)]
        raw: &'a RawValue,
    }
    let body: Body<'_> = serde_json::from_str(body).ok()?;
    Some(body.raw.get())
}
