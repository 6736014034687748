//! The API key in the path of a client.

use serde::Deserialize;

/// An API key from a path. The route accepts only well-formed keys.
#[derive(Debug, Deserialize)]
#[serde(transparent)]
pub struct ClientKey(pub String);
