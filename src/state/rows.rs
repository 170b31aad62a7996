//! SQL helpers for all tables: rows hold JSON, and ids are found by prefix.

use rusqlite::types::Type;
use rusqlite::{Connection, Row};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::escape::printable;
use crate::job::{JobId, Record, is_id_text};

/// Minimum length of an id prefix, in characters.
const PREFIX_MIN: usize = 3;

/// Selects records; `rest` is the part of the statement after the table.
pub fn select(
    connection: &Connection,
    rest: &str,
    parameters: impl rusqlite::Params,
) -> rusqlite::Result<Vec<Record>> {
    connection
        .prepare_cached(&format!("SELECT record FROM jobs {rest}"))?
        .query_map(parameters, from_json)?
        .collect()
}

pub fn json(value: &impl Serialize) -> rusqlite::Result<String> {
    serde_json::to_string(value)
        .map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))
}

/// Parses a row's JSON. rsig wrote it, but a person may have edited it since.
pub fn from_json<T: DeserializeOwned>(row: &Row<'_>) -> rusqlite::Result<T> {
    let text: String = row.get(0)?;
    serde_json::from_str(&text).map_err(|error| {
        let why = format!("{} is damaged: {error}", printable(&text, 80));
        rusqlite::Error::FromSqlConversionFailure(0, Type::Text, why.into())
    })
}

/// The range of ids that begin with a text, if it can be an id prefix: from the first, up to but excluding the second.
pub fn id_range(text: &str) -> Option<[String; 2]> {
    // '{' comes directly after 'z', the highest character of an id.
    let is_prefix = is_id_text(text) && (PREFIX_MIN..=JobId::LENGTH).contains(&text.len());
    is_prefix.then(|| [text.to_owned(), format!("{text}{{")])
}
