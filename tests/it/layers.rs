//! Dependency rules between the folders of `src/`. `docs/architecture.md` shows them as a diagram.

use std::fs;
use std::path::{Path, PathBuf};

/// Each folder and the folders that it may import. `main` and `app` may import all folders.
const ALLOWED_IMPORTS: [(&str, &[&str]); 14] = [
    ("model", &[]),
    ("metrics", &[]),
    ("crypto", &["model"]),
    ("seal", &[]),
    ("db", &["model", "crypto"]),
    ("upstream", &["model"]),
    ("auth", &["model", "db"]),
    ("jobs", &["model", "crypto", "seal", "db", "metrics"]),
    ("vending", &["model", "crypto", "db", "upstream", "metrics"]),
    (
        "api",
        &["model", "seal", "db", "auth", "jobs", "vending", "metrics"],
    ),
    ("config", &["model", "seal"]),
    ("telemetry", &["config"]),
    ("dev", &["model"]),
    (
        "cli",
        &[
            "app",
            "config",
            "telemetry",
            "auth",
            "jobs",
            "db",
            "upstream",
            "crypto",
            "seal",
            "model",
            "metrics",
            "dev",
        ],
    ),
];

/// The modules of `api`, lowest first. Each imports only modules before it.
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

/// Each restricted library and the folders or modules that may use it.
const LIBRARIES: [(&str, &[&str]); 13] = [
    ("actix_web::", &["api", "dev"]),
    ("actix_http::", &["dev"]),
    ("utoipa_swagger_ui::", &["api"]),
    ("askama::", &["api", "dev"]),
    ("reqwest::", &["upstream", "auth/oidc"]),
    ("jsonwebtoken::", &["auth/oidc"]),
    ("ring::signature", &["auth/oidc"]),
    ("sqlx::", &["db"]),
    ("chacha20poly1305::", &["crypto"]),
    ("tlog_tiles::", &["seal"]),
    ("signed_note::", &["seal"]),
    ("prometheus::", &["metrics"]),
    ("clap::", &["cli", "config", "main"]),
];

#[test]
fn folders_import_only_allowed_folders() {
    let mut violations = Vec::new();
    for line in read_code() {
        let rule = ALLOWED_IMPORTS
            .iter()
            .find(|(name, _)| *name == line.folder());
        let Some((folder, allowed)) = rule else {
            continue;
        };
        for path in line.imported_paths() {
            // An empty path is `crate::{…}`, which would hide the imported folders.
            let imported = path.first().map_or("crate", String::as_str);
            if imported != *folder && !allowed.contains(&imported) {
                violations.push(line.violation(&format!("{folder} imports {imported}")));
            }
        }
    }
    assert_none(&violations);
}

#[test]
fn modules_of_api_import_only_lower_modules() {
    let level = |module: &str| API_LEVELS.iter().position(|level| *level == module);
    let mut violations = Vec::new();
    for line in read_code().iter().filter(|line| line.folder() == "api") {
        // `api/mod.rs` declares the modules and is above all of them.
        let Some(module) = line.module.get(1) else {
            continue;
        };
        let own_level = level(module);
        assert!(own_level.is_some(), "src/api/{module} has no level");
        for path in line.imported_paths() {
            if path.first().is_none_or(|folder| folder != "api") {
                continue;
            }
            // A path that ends here is `crate::api::{…}`, which would hide the imported modules.
            let imported = path.get(1).map_or("api", String::as_str);
            let is_lower = level(imported).is_some() && level(imported) < own_level;
            if imported != module && !is_lower {
                violations.push(line.violation(&format!("{module} imports {imported}")));
            }
        }
    }
    assert_none(&violations);
}

#[test]
fn libraries_are_used_only_in_their_folders() {
    let mut violations = Vec::new();
    for line in read_code() {
        for (library, folders) in LIBRARIES {
            if line.code.contains(library) && !folders.iter().any(|folder| line.is_in(folder)) {
                violations.push(line.violation(&format!("{} uses {library}", line.folder())));
            }
        }
    }
    assert_none(&violations);
}

#[test]
fn the_verifier_of_bearer_tokens_knows_nothing_of_clients() {
    let mut violations = Vec::new();
    for line in read_code().iter().filter(|line| line.is_in("auth/oidc")) {
        let paths = line.imported_paths();
        if paths
            .iter()
            .any(|path| !path.join("/").starts_with("auth/oidc"))
        {
            violations.push(line.violation("auth/oidc imports something else"));
        }
    }
    assert_none(&violations);
}

#[test]
fn every_rule_is_about_an_existing_folder() {
    let lines = read_code();
    for (folder, _) in ALLOWED_IMPORTS {
        let exists = lines.iter().any(|line| line.folder() == folder);
        assert!(exists, "src/{folder} does not exist");
    }
}

#[track_caller]
fn assert_none(violations: &[String]) {
    assert!(violations.is_empty(), "{}", violations.join("\n"));
}

/// A line of code without its comment.
struct CodeLine {
    file: PathBuf,
    number: usize,
    code: String,
    /// The path of the module: `["api", "handlers", "tokens"]` in `src/api/handlers/tokens.rs`.
    module: Vec<String>,
}

impl CodeLine {
    /// Returns the name of the folder or file directly below `src/`.
    fn folder(&self) -> &str {
        &self.module[0]
    }

    /// Returns true if the line is in this folder or module, such as `auth/oidc`.
    fn is_in(&self, folder: &str) -> bool {
        let names: Vec<&str> = folder.split('/').collect();
        let own: Vec<&str> = self.module.iter().map(String::as_str).collect();
        own.starts_with(&names)
    }

    /// Returns the paths that the line names by `crate::` or `super::`, relative to the crate root.
    fn imported_paths(&self) -> Vec<Vec<String>> {
        let is_in_path = |character: char| character.is_alphanumeric() || "_:".contains(character);
        let paths = self.code.split(|character| !is_in_path(character));
        // `crate` without `::` is a visibility.
        let paths = paths.filter(|path| path.contains("::"));
        paths
            .filter_map(|path| {
                let names: Vec<&str> = path.split("::").filter(|name| !name.is_empty()).collect();
                let supers = names.iter().take_while(|name| **name == "super").count();
                let parent = match names.first() {
                    Some(&"crate") => &[],
                    Some(&"super") => &self.module[..self.module.len().saturating_sub(supers)],
                    _ => return None,
                };
                let children = names[supers.max(1)..].iter().map(|name| (*name).to_owned());
                Some(parent.iter().cloned().chain(children).collect())
            })
            .collect()
    }

    /// Describes a violation together with its place.
    fn violation(&self, description: &str) -> String {
        format!("{}:{}: {description}", self.file.display(), self.number)
    }
}

/// Reads all code of `src/` except unit tests.
fn read_code() -> Vec<CodeLine> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut lines = Vec::new();
    let mut folders = vec![src.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.file_stem().unwrap() == "tests" {
                continue;
            }
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                lines.extend(read_file(&src, &path));
            }
        }
    }
    lines
}

/// Reads the lines of a file up to its unit tests.
fn read_file(src: &Path, file: &Path) -> Vec<CodeLine> {
    let path = file.strip_prefix(src).unwrap().with_extension("");
    let module: Vec<String> = path
        .iter()
        .map(|name| name.to_string_lossy().into_owned())
        .filter(|name| name != "mod")
        .collect();
    fs::read_to_string(file)
        .unwrap()
        .lines()
        .enumerate()
        .take_while(|(_, line)| *line != "#[cfg(test)]")
        .map(|(index, line)| CodeLine {
            file: file.to_owned(),
            number: index + 1,
            code: line.split("//").next().unwrap_or_default().to_owned(),
            module: module.clone(),
        })
        .collect()
}
