//! The import rules of the map in `src/lib.rs`.

use std::fs;
use std::path::{Path, PathBuf};

/// Which of our own parts each part may name; `main`, `cli` and `app` wire and see everything.
const MAY_NAME: [(&str, &[&str]); 11] = [
    ("model", &[]),
    ("metrics", &[]),
    ("crypto", &["model"]),
    ("db", &["model", "crypto"]),
    ("upstream", &["model"]),
    ("vending", &["model", "crypto", "db", "upstream", "metrics"]),
    ("api", &["model", "db", "vending", "metrics"]),
    ("config", &["model"]),
    ("telemetry", &["config"]),
    ("sandbox", &["model"]),
    ("local_postgres", &[]),
];

/// Which part alone may name a library.
const BELONGS_TO: [(&str, &[&str]); 9] = [
    ("actix_web::", &["api", "sandbox"]),
    ("actix_http::", &["sandbox"]),
    ("utoipa_swagger_ui::", &["api"]),
    ("askama::", &["api"]),
    ("reqwest::", &["upstream"]),
    ("sqlx::", &["db"]),
    ("chacha20poly1305::", &["crypto"]),
    ("prometheus::", &["metrics"]),
    ("clap::", &["cli", "config", "main"]),
];

#[test]
fn parts_name_only_what_is_below_them() {
    let mut broken = Vec::new();
    for (file, part) in sources() {
        let Some((_, allowed)) = MAY_NAME.iter().find(|(name, _)| *name == part) else {
            continue;
        };
        for (number, line) in code(&file) {
            for named in line.split("crate::").skip(1) {
                let named: String = named
                    .chars()
                    .take_while(|character| character.is_alphanumeric() || *character == '_')
                    .collect();
                if named != part && !named.is_empty() && !allowed.contains(&named.as_str()) {
                    broken.push(format!("{}:{number}: {part} names {named}", file.display()));
                }
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn libraries_stay_in_their_part() {
    let mut broken = Vec::new();
    for (file, part) in sources() {
        for (number, line) in code(&file) {
            for (library, parts) in BELONGS_TO {
                if line.contains(library) && !parts.contains(&part.as_str()) {
                    broken.push(format!(
                        "{}:{number}: {part} names {library}",
                        file.display()
                    ));
                }
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn the_rules_see_every_part() {
    let parts: Vec<String> = sources().into_iter().map(|(_, part)| part).collect();
    for (part, _) in MAY_NAME {
        assert!(parts.iter().any(|seen| seen == part), "{part} is gone");
    }
}

/// Every source file with the part that it belongs to; tests in their own files are not of the map.
fn sources() -> Vec<(PathBuf, String)> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    let mut folders = vec![src.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_stem().unwrap().to_string_lossy().into_owned();
            if path.is_dir() {
                if name != "tests" {
                    folders.push(path);
                }
            } else if path.extension().is_some_and(|kind| kind == "rs") && name != "tests" {
                let relative = path.strip_prefix(&src).unwrap().to_path_buf();
                let part = relative.iter().next().unwrap().to_string_lossy();
                found.push((path, part.trim_end_matches(".rs").to_owned()));
            }
        }
    }
    found
}

/// The lines of code up to the file's unit tests, without comments.
fn code(file: &Path) -> Vec<(usize, String)> {
    let text = fs::read_to_string(file).unwrap();
    text.lines()
        .enumerate()
        .take_while(|(_, line)| *line != "#[cfg(test)]")
        .map(|(number, line)| (number + 1, line.split("//").next().unwrap_or("").to_owned()))
        .collect()
}
