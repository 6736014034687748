//! Checkpoints: the signed heads of the sealed audit log (c2sp.org/tlog-checkpoint, c2sp.org/signed-note).

use std::fmt;

use rand_core::OsRng;
use signed_note::{
    Note, Signer, StandardSigner, StandardVerifier, Verifier, VerifierList, generate_key,
    is_key_name_valid,
};
use tlog_tiles::checkpoint::Checkpoint;
use tlog_tiles::tlog::Hash as TreeHash;

use super::tree::Hash;

/// Writes checkpoints of one log. Signs them if it has a key.
#[derive(Clone)]
pub struct CheckpointWriter {
    origin: String,
    signer: Option<StandardSigner>,
}

impl fmt::Debug for CheckpointWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CheckpointWriter")
            .field("origin", &self.origin)
            .finish_non_exhaustive()
    }
}

impl CheckpointWriter {
    /// Creates a writer for an origin that [`is_origin`] accepts, with a key in signed-note's private format.
    ///
    /// # Errors
    /// Returns what is wrong with the key. The text does not contain the key.
    pub fn new(origin: &str, signing_key: Option<&str>) -> Result<Self, &'static str> {
        let signer = signing_key.map(StandardSigner::new).transpose();
        let signer = signer.map_err(
            |_| "must be a private key in signed-note format, from `token-vendor seal keys`",
        )?;
        if signer
            .as_ref()
            .is_some_and(|signer| signer.name() != origin)
        {
            return Err("must be the key of SEAL_ORIGIN; its name differs");
        }
        Ok(CheckpointWriter {
            origin: origin.to_owned(),
            signer,
        })
    }

    /// Writes the checkpoint of a tree.
    pub fn write(&self, size: u64, root: Hash) -> String {
        let checkpoint = Checkpoint::new(&self.origin, size, TreeHash(root), "")
            .expect("the origin is not empty");
        let mut note = Note::new(&checkpoint.to_bytes(), &[]).expect("a checkpoint is a note");
        if let Some(signer) = &self.signer {
            note.add_sigs(&[signer])
                .expect("an Ed25519 key signs every note");
        }
        String::from_utf8(note.to_bytes()).expect("a note is text")
    }
}

/// Returns true for a text that can name a log and its key: without white space and `+`.
pub fn is_origin(text: &str) -> bool {
    is_key_name_valid(text)
}

/// The head of a tree, as a checkpoint states it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Head {
    /// The number of entries.
    pub size: u64,
    /// The root.
    pub root: Hash,
}

/// Parses a checkpoint. Verifies its signature if a verifier key is given.
///
/// # Errors
/// Returns what is wrong with it.
pub fn open_checkpoint(text: &str, verifier_key: Option<&str>) -> Result<Head, CheckpointError> {
    let (body, _) = text.split_once("\n\n").ok_or(CheckpointError::Malformed)?;
    let body = format!("{body}\n");
    let checkpoint =
        Checkpoint::from_bytes(body.as_bytes()).map_err(|_| CheckpointError::Malformed)?;
    if let Some(key) = verifier_key {
        let verifier = StandardVerifier::new(key).map_err(|_| CheckpointError::Key)?;
        let is_origin = checkpoint.origin() == verifier.name();
        let note = Note::from_bytes(text.as_bytes()).map_err(|_| CheckpointError::Signature)?;
        let verified = note.verify(&VerifierList::new(vec![Box::new(verifier)]));
        if !is_origin || verified.is_err() {
            return Err(CheckpointError::Signature);
        }
    }
    Ok(Head {
        size: checkpoint.size(),
        root: checkpoint.hash().0,
    })
}

/// The fault of a checkpoint, or of the key that verifies it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The text is not a checkpoint.
    #[error("it is not a checkpoint")]
    Malformed,
    /// The checkpoint has no valid signature of the key.
    #[error("it has no valid signature of the public key")]
    Signature,
    /// The key cannot be used.
    #[error("the public key is not one in signed-note format")]
    Key,
}

/// A new key pair in the formats of signed-note.
#[derive(Debug)]
pub struct Keys {
    /// The private key, for `SEAL_SIGNING_KEY`.
    pub signing_key: String,
    /// The public key, for those who verify checkpoints.
    pub verifier_key: String,
}

/// Creates a key pair for an origin.
pub fn generate_keys(origin: &str) -> Keys {
    let (signing_key, verifier_key) = generate_key(&mut OsRng, origin);
    Keys {
        signing_key,
        verifier_key,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_is_a_note_with_a_signature_of_its_origin() {
        let keys = generate_keys("example.com/audit");
        let writer = CheckpointWriter::new("example.com/audit", Some(&keys.signing_key)).unwrap();
        let text = writer.write(7, [1; 32]);
        assert!(text.starts_with("example.com/audit\n7\nAQEB"), "{text}");
        let head = open_checkpoint(&text, Some(&keys.verifier_key)).unwrap();
        let expected = Head {
            size: 7,
            root: [1; 32],
        };
        assert_eq!(head, expected);

        let open = |text: &str, key: &str| open_checkpoint(text, Some(key)).unwrap_err();
        let other = generate_keys("example.com/audit");
        assert_eq!(open(&text, &other.verifier_key), CheckpointError::Signature);
        assert_eq!(open(&text, "key"), CheckpointError::Key);
        let changed = text.replacen("\n7\n", "\n8\n", 1);
        assert_eq!(
            open(&changed, &keys.verifier_key),
            CheckpointError::Signature
        );
        let (unsigned, _) = text.split_once('—').unwrap();
        assert_eq!(
            open(unsigned, &keys.verifier_key),
            CheckpointError::Signature
        );
        assert_eq!(open_checkpoint(unsigned, None), Ok(expected));
        assert_eq!(open("x", &keys.verifier_key), CheckpointError::Malformed);
    }

    #[test]
    fn a_checkpoint_without_a_key_has_no_signature() {
        let writer = CheckpointWriter::new("example.com/audit", None).unwrap();
        let text = writer.write(0, [0; 32]);
        let root = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
        assert_eq!(text, format!("example.com/audit\n0\n{root}\n\n"));
    }

    #[test]
    fn a_wrong_key_is_refused() {
        let keys = generate_keys("other");
        assert!(CheckpointWriter::new("origin", Some(&keys.signing_key)).is_err());
        assert!(CheckpointWriter::new("other", Some(&keys.verifier_key)).is_err());
        assert!(CheckpointWriter::new("other", Some(&keys.signing_key)).is_ok());
    }
}
