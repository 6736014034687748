//! What is written to the audit trail.

use super::failure::from_names;

from_names! {
    /// The kind of an audit event.
    pub enum EventKind {
        /// A token was minted, for the request named.
        TokenMinted = "token.minted",
        /// A token on record was handed out, or authorised to be.
        TokenReused = "token.reused",
        /// A mint failed, and the upstream made nothing that we know of.
        TokenMintFailed = "token.mint_failed",
        /// Nobody knows whether the upstream minted.
        TokenMintUnknown = "token.mint_unknown",
        /// A token was ended before its time.
        TokenInvalidated = "token.invalidated",
        /// A token's time was over.
        TokenExpired = "token.expired",
        /// A cleanup did something.
        CleanupRan = "cleanup.ran",
        /// A client was created.
        ClientCreated = "client.created",
        /// A client was disabled.
        ClientDisabled = "client.disabled",
        /// A client was given a new secret.
        ClientRotated = "client.rotated",
        /// Stored tokens were sealed anew, under the first key.
        KeysRotated = "keys.rotated",
    }
}
