//! The document that describes the routes (OpenAPI 3.1), kept by hand beside them; the tests hold the server against it.

use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;

/// With `VERSION` in the place of rsig's.
const DOCUMENT: &str = include_str!("openapi.json");

pub async fn document() -> impl IntoResponse {
    let document = DOCUMENT.replacen("VERSION", env!("CARGO_PKG_VERSION"), 1);
    ([(CONTENT_TYPE, "application/json")], document)
}
