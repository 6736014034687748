//! Checkpoints: the signed heads of the sealed audit log (c2sp.org/tlog-checkpoint, c2sp.org/signed-note).

use std::fmt;

use rand_core::OsRng;
use signed_note::{Note, Signer, StandardSigner, generate_key, is_key_name_valid};
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

/// Returns the size of the tree of a checkpoint.
pub fn read_size(checkpoint: &str) -> Option<u64> {
    checkpoint.lines().nth(1)?.parse().ok()
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
    use signed_note::{StandardVerifier, VerifierList};

    use super::*;

    #[test]
    fn a_checkpoint_is_a_note_with_a_signature_of_its_origin() {
        let keys = generate_keys("example.com/audit");
        let writer = CheckpointWriter::new("example.com/audit", Some(&keys.signing_key)).unwrap();
        let text = writer.write(7, [1; 32]);
        assert!(text.starts_with("example.com/audit\n7\nAQEB"), "{text}");
        assert_eq!(read_size(&text), Some(7));
        let note = Note::from_bytes(text.as_bytes()).unwrap();
        let verifier = StandardVerifier::new(&keys.verifier_key).unwrap();
        let verifiers = VerifierList::new(vec![Box::new(verifier)]);
        let (verified, unverified) = note.verify(&verifiers).unwrap();
        assert_eq!((verified.len(), unverified.len()), (1, 0));
        let checkpoint = Checkpoint::from_bytes(note.text()).unwrap();
        assert_eq!((checkpoint.size(), checkpoint.hash().0), (7, [1; 32]));
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
