//! The fuzz targets of `fuzz/` as ordinary tests: every file of the corpus, and mutations of these files.

use std::fs;
use std::path::{Path, PathBuf};

use super::{TARGETS, Target};
use fastrand::Rng;

const MUTATIONS: usize = 5_000;

/// Text that is special to one of the parsers.
const TOKENS: [&[u8]; 16] = [
    b"\"",
    b"\\",
    b",",
    b"=",
    b"\n",
    b"\\u0000",
    b"\\ud83d\\ude00",
    b"null",
    b"1e999",
    b"-0.0",
    b"2592000",
    b"min-fresh=",
    b"9999-12-31T23:59:59.999999999",
    b"-23:59",
    b"\x00",
    b"\xff",
];

fn fuzz_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
}

fn corpus(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = fuzz_folder().join("corpus").join(target);
    let entries = fs::read_dir(folder).unwrap();
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let files = paths.into_iter().map(|path| {
        let data = fs::read(&path).unwrap();
        (path, data)
    });
    files.collect()
}

/// Runs the target and names the input if it panics.
fn check(target: Target, data: &[u8], origin: &str) {
    let result = std::panic::catch_unwind(|| target(data));
    assert!(result.is_ok(), "{origin}: {}", data.escape_ascii());
}

/// Changes one to four places: a bit, a byte, a special text, a removed range, or the rest of another input.
fn mutate(data: &mut Vec<u8>, other: &[u8], random: &mut Rng) {
    for _ in 0..random.usize(1..=4) {
        let at = random.usize(0..=data.len());
        match random.u8(0..5) {
            0 if at < data.len() => data[at] ^= 1 << random.u8(0..8),
            1 => data.insert(at, random.u8(..)),
            2 => {
                let text = TOKENS[random.usize(0..TOKENS.len())];
                data.splice(at..at, text.iter().copied());
            }
            3 => {
                let end = random.usize(at..=data.len());
                data.drain(at..end);
            }
            _ => {
                data.truncate(at);
                data.extend(&other[random.usize(0..=other.len())..]);
            }
        }
    }
}

#[test]
fn the_corpus_and_its_mutations_keep_every_property() {
    for (name, target) in TARGETS {
        let files = corpus(name);
        for (path, data) in &files {
            check(target, data, &path.display().to_string());
        }
        // The fixed seed makes a failure repeatable.
        let mut random = Rng::with_seed(1);
        for number in 0..MUTATIONS {
            let mut data = files[random.usize(0..files.len())].1.clone();
            let other = &files[random.usize(0..files.len())].1;
            mutate(&mut data, other, &mut random);
            check(target, &data, &format!("{name}, mutation {number}"));
        }
    }
}

#[test]
fn every_fuzz_target_has_a_binary_that_calls_it() {
    let manifest = fs::read_to_string(fuzz_folder().join("Cargo.toml")).unwrap();
    for (name, _) in TARGETS {
        let path = format!("fuzz_targets/{name}.rs");
        let code = fs::read_to_string(fuzz_folder().join(&path)).unwrap();
        assert!(code.contains(&format!("fuzzing::{name}(data)")), "{path}");
        assert!(manifest.contains(&format!("path = \"{path}\"")), "{path}");
    }
    assert_eq!(manifest.matches("[[bin]]").count(), TARGETS.len());
}
