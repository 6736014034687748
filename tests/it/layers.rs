//! The import rules of the map in `src/lib.rs`.

use std::fs;
use std::path::{Path, PathBuf};

/// The folders of ours that each folder may import; `main` and `app` wire and import everything.
const MAY_IMPORT: [(&str, &[&str]); 13] = [
    ("model", &[]),
    ("metrics", &[]),
    ("crypto", &["model"]),
    ("db", &["model", "crypto"]),
    ("upstream", &["model"]),
    ("auth", &["model", "db"]),
    ("jobs", &["model", "crypto", "db", "metrics"]),
    ("vending", &["model", "crypto", "db", "upstream", "metrics"]),
    (
        "api",
        &["model", "db", "auth", "jobs", "vending", "metrics"],
    ),
    ("config", &["model"]),
    ("telemetry", &["config"]),
    ("dev", &["model"]),
    (
        "cli",
        &[
            "app",
            "config",
            "telemetry",
            "jobs",
            "db",
            "upstream",
            "crypto",
            "model",
            "metrics",
            "dev",
        ],
    ),
];

/// The parts of `api`, lowest first: each imports only parts before it.
const API_LEVELS: [&str; 10] = [
    "problem",
    "state",
    "middleware",
    "extract",
    "routes",
    "handlers",
    "console",
    "router",
    "openapi",
    "fuzzing",
];

/// The folders that may name each library.
const LIBRARIES: [(&str, &[&str]); 9] = [
    ("actix_web::", &["api", "dev"]),
    ("actix_http::", &["dev"]),
    ("utoipa_swagger_ui::", &["api"]),
    ("askama::", &["api"]),
    ("reqwest::", &["upstream"]),
    ("sqlx::", &["db"]),
    ("chacha20poly1305::", &["crypto"]),
    ("prometheus::", &["metrics"]),
    ("clap::", &["cli", "config", "main"]),
];

#[test]
fn folders_import_only_folders_below_them() {
    let mut broken = Vec::new();
    for (file, part) in sources() {
        let Some((_, allowed)) = MAY_IMPORT.iter().find(|(name, _)| *name == part) else {
            continue;
        };
        for (number, line) in code(&file) {
            for named in names_after(&line, "crate::") {
                if named != part && !allowed.contains(&named.as_str()) {
                    broken.push(format!(
                        "{}:{number}: {part} imports {named}",
                        file.display()
                    ));
                }
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn nothing_in_api_imports_upward() {
    let api = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/api");
    let level = |part: &str| API_LEVELS.iter().position(|level| *level == part);
    let mut broken = Vec::new();
    for (file, _) in sources() {
        let Ok(relative) = file.strip_prefix(&api) else {
            continue;
        };
        let part = relative.iter().next().unwrap().to_string_lossy();
        let part = part.trim_end_matches(".rs");
        // `api/mod.rs` wires the parts.
        if part == "mod" {
            continue;
        }
        let own = level(part);
        assert!(own.is_some(), "src/api/{part} has no level");
        for (number, line) in code(&file) {
            let imported = names_after(&line, "crate::api::");
            for name in &imported {
                if name != part && level(name) >= own {
                    broken.push(format!(
                        "{}:{number}: {part} imports {name}",
                        file.display()
                    ));
                }
            }
            // A relative path leads out of its folder only with a second `super`.
            if line.contains("super::super::")
                || relative.iter().count() == 1 && line.contains("super::")
            {
                broken.push(format!(
                    "{}:{number}: a relative import of another part",
                    file.display()
                ));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn libraries_stay_in_their_folder() {
    let mut broken = Vec::new();
    for (file, part) in sources() {
        for (number, line) in code(&file) {
            for (library, parts) in LIBRARIES {
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
fn the_rules_name_existing_folders() {
    let parts: Vec<String> = sources().into_iter().map(|(_, part)| part).collect();
    for (part, _) in MAY_IMPORT {
        assert!(parts.iter().any(|seen| seen == part), "{part} is gone");
    }
}

/// The names that follow a path prefix in a line, one for each occurrence.
fn names_after(line: &str, prefix: &str) -> Vec<String> {
    let rest = line.split(prefix).skip(1);
    let name = |rest: &str| -> String {
        let is_part_of_name = |character: &char| character.is_alphanumeric() || *character == '_';
        rest.chars().take_while(is_part_of_name).collect()
    };
    // An import of several parts in braces names none of them here: it is not allowed.
    rest.inspect(|rest| assert!(!rest.starts_with('{'), "{line}: import one part a line"))
        .map(name)
        .filter(|name| !name.is_empty())
        .collect()
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
