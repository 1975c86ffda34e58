//! Holds the map of ARCHITECTURE.md to the code: a module names only modules of lower layers.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// Top to bottom; in the second place, the layer.
const LAYERS: &[(&[&str], u8)] = &[
    (&["main", "cli"], 7),
    (&["app"], 6),
    (&["config"], 5),
    (&["gate", "kes", "verifier", "sse", "admin", "control"], 4),
    (&["keyring", "keystore", "http", "pins", "offline", "backup"], 3),
    (&["vault", "kes_client", "s3", "kubernetes"], 2),
    (&["crypto", "tls", "store", "evidence", "known"], 2),
    (&["identity", "health", "metrics", "shutdown", "retry", "telemetry", "memory", "files"], 1),
    (&["cause", "secret", "names", "clock", "exit", "version", "go"], 0),
];

/// Modules of one layer that may still name one another: what the map says, and no more.
const ALLOWED: &[(&str, &str)] = &[
    // Everything that speaks TLS does so through the one module that knows how.
    ("vault", "tls"),
    ("kes_client", "tls"),
    ("s3", "tls"),
    ("kubernetes", "tls"),
    // The sealed copy is of what the keyring holds.
    ("offline", "keyring"),
    // What a person is told of a key names how its store sets one aside.
    ("known", "store"),
    // A backup says of each key whether it was the pinned one.
    ("backup", "pins"),
    // The bottom row: a cause ends in an exit code.
    ("cause", "exit"),
];

fn layer(module: &str) -> Option<u8> {
    LAYERS.iter().find(|(modules, _)| modules.contains(&module)).map(|(_, layer)| *layer)
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir)
        .expect("src must be readable")
        .map(|entry| entry.expect("an entry must be readable").path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

/// The module that a file belongs to: the first part of its path below `src`.
fn module_of(file: &Path, src: &Path) -> String {
    let inner = file.strip_prefix(src).expect("a file must be below src");
    let first = inner
        .components()
        .next()
        .expect("a file must have a name")
        .as_os_str()
        .to_string_lossy()
        .into_owned();
    first.trim_end_matches(".rs").to_owned()
}

/// The modules that a text names as `crate::x` or in `use crate::{ … }`.
fn named(text: &str) -> Vec<String> {
    let mut names = Vec::new();
    for part in text.split("crate::").skip(1) {
        match part.strip_prefix('{') {
            None => names.push(identifier(part)),
            Some(group) => {
                let (mut depth, mut start) = (0, true);
                for (at, character) in group.char_indices() {
                    match character {
                        '{' => depth += 1,
                        '}' if depth == 0 => break,
                        '}' => depth -= 1,
                        ',' if depth == 0 => start = true,
                        _ if start && character.is_alphabetic() => {
                            names.push(identifier(&group[at..]));
                            start = false;
                        }
                        _ => {}
                    }
                }
            }
        }
    }
    names
}

fn identifier(text: &str) -> String {
    text.chars().take_while(|character| character.is_alphanumeric() || *character == '_').collect()
}

#[test]
fn a_module_names_only_what_is_below_it() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut seen = BTreeMap::new();
    let mut wrong = Vec::new();
    for file in files(&src) {
        let module = module_of(&file, &src);
        if module == "lib" {
            continue;
        }
        let own =
            layer(&module).unwrap_or_else(|| panic!("{} is in no layer: add it to the map", file.display()));
        seen.insert(module.clone(), ());
        let text = fs::read_to_string(&file).expect("a source file must be readable");
        for name in named(&text) {
            let Some(theirs) = layer(&name) else { continue };
            let allowed = ALLOWED.contains(&(module.as_str(), name.as_str()));
            if name != module && theirs >= own && !allowed {
                wrong.push(format!("{} names {name}", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "against the map:\n{}", wrong.join("\n"));
    assert!(seen.len() > 25, "only {} modules were found", seen.len());
}

#[test]
fn every_file_says_its_one_idea_first() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for file in files(&src) {
        let text = fs::read_to_string(&file).expect("a source file must be readable");
        assert!(text.starts_with("//! "), "{} does not start with //!", file.display());
    }
}

#[test]
fn the_groups_of_a_use_are_read() {
    let text = "use crate::{\n a::{b, c},\n d,\n e as f,\n};\nuse crate::g::h; crate::i::j()";
    assert_eq!(named(text), ["a", "d", "e", "g", "i"]);
}
