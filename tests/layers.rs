//! Structure of the source: imports go downward only, and there are no import cycles between files.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// The modules of `src`, from top to bottom. A module imports only from its own layer and the layers below.
const LAYERS: [&[&str]; 9] = [
    &["main"],
    &["cmd", "servers"],
    &["terminal"],
    &["delivery"],
    &["remote"],
    &["connection"],
    &["state"],
    &["job", "host", "hosts", "signal"],
    &["clock", "error", "escape", "glob", "sys"],
];

/// Known imports that go upward: a module and the one that it imports. Should stay empty.
const UPWARD: [(&str, &str); 0] = [];

/// Known import cycles between files. Should stay empty.
const CYCLES: [&[&str]; 0] = [];

#[test]
fn imports_go_downward() {
    let layer = |module: &str| {
        let found = LAYERS.iter().position(|layer| layer.contains(&module));
        found.unwrap_or_else(|| panic!("{module} has no layer in {}", file!()))
    };
    let (mut upward, all) = (BTreeSet::new(), imports());
    for (file, imports) in &all {
        let from = module(file);
        for to in imports.iter().map(|file| module(file)) {
            if layer(to) < layer(from) {
                upward.insert((from, to));
            }
        }
    }
    assert_eq!(
        upward,
        UPWARD.into(),
        "left: found; right: known in {}",
        file!()
    );
}

#[test]
fn no_file_imports_itself_by_way_of_others() {
    let imports = imports();
    let reached: BTreeMap<&str, BTreeSet<&str>> = imports
        .keys()
        .map(|file| (file.as_str(), reached_from(file, &imports)))
        .collect();
    let in_cycles = reached.iter().filter(|(file, all)| all.contains(*file));
    let found: BTreeSet<Vec<&str>> = in_cycles
        .map(|(file, all)| {
            let both_ways = all.iter().filter(|other| reached[*other].contains(file));
            both_ways.copied().collect()
        })
        .collect();
    let known = CYCLES.iter().map(|cycle| cycle.to_vec()).collect();
    assert_eq!(found, known, "left: found; right: known in {}", file!());
}

/// All files that a file imports, directly or indirectly.
fn reached_from<'a>(
    file: &'a str,
    imports: &'a BTreeMap<String, BTreeSet<String>>,
) -> BTreeSet<&'a str> {
    let mut reached = BTreeSet::new();
    let mut next = vec![file];
    while let Some(file) = next.pop() {
        for import in &imports[file] {
            if reached.insert(import.as_str()) {
                next.push(import);
            }
        }
    }
    reached
}

/// The module below `src` that a file belongs to.
fn module(file: &str) -> &str {
    let first = file.split('/').next().unwrap_or(file);
    first.trim_end_matches(".rs")
}

/// Each file of `src` with the files that it imports. Left out are imports between a folder's `mod.rs` and the files
/// below it, the imports of `main.rs`, which declares everything, and tests.
fn imports() -> BTreeMap<String, BTreeSet<String>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = BTreeMap::new();
    read_below(&root, &root, &mut files);
    files
        .iter()
        .map(|(file, text)| {
            let mut here: Vec<&str> = file.trim_end_matches(".rs").split('/').collect();
            here.pop_if(|name| ["mod", "main"].contains(name));
            let paths = paths(text).into_iter();
            let named = paths.filter_map(|path| file_of(&absolute(&here, &path), &files));
            let imported = named.filter(|to| to != file && !same_folder(file, to));
            let imported = imported.filter(|_| file != "main.rs").collect();
            (file.clone(), imported)
        })
        .collect()
}

fn read_below(dir: &Path, root: &Path, files: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(dir).expect("our own directory").flatten() {
        let path = entry.path();
        if path.is_dir() {
            read_below(&path, root, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let name = path.strip_prefix(root).expect("it is below").display();
            let text = fs::read_to_string(&path).expect("text");
            let product = text
                .split("\n#[cfg(test)]\nmod ")
                .next()
                .unwrap_or_default();
            let lines = product.lines().map(|line| line.split("//").next());
            files.insert(
                name.to_string(),
                lines.flatten().collect::<Vec<_>>().join("\n"),
            );
        }
    }
}

fn same_folder(one: &str, other: &str) -> bool {
    let owns = |module: &str, file: &str| {
        module
            .strip_suffix("mod.rs")
            .is_some_and(|folder| file.starts_with(folder))
    };
    owns(one, other) || owns(other, one)
}

/// The paths in a text that begin with `crate` or `super`. A list in braces gives one path per member.
fn paths(text: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    for start in ["crate", "super"] {
        for (at, _) in text.match_indices(&format!("{start}::")) {
            let inner = text[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':');
            if !inner {
                collect(&text[at..], &mut Vec::new(), &mut found);
            }
        }
    }
    found
}

/// Reads a path and the list in its braces, with the names in `before` in front. Returns the rest of the text.
fn collect<'a>(text: &'a str, before: &mut Vec<String>, found: &mut Vec<Vec<String>>) -> &'a str {
    let depth = before.len();
    let mut rest = text.trim_start();
    loop {
        let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_');
        let (name, behind) = rest.split_at(end.unwrap_or(rest.len()));
        before.push(name.to_owned());
        match behind.strip_prefix("::") {
            Some(inner) if inner.starts_with('{') => {
                rest = &inner[1..];
                while !rest.trim_start().starts_with('}') && !rest.trim().is_empty() {
                    rest = collect(rest, before, found);
                    // Skips an alias, and the comma.
                    let end = rest.find([',', '}']).unwrap_or(rest.len());
                    rest = rest[end..].strip_prefix(',').unwrap_or(&rest[end..]);
                }
                rest = rest.trim_start().strip_prefix('}').unwrap_or_default();
                break;
            }
            Some(inner) if !name.is_empty() => rest = inner,
            _ => {
                found.push(before.clone());
                rest = behind;
                break;
            }
        }
    }
    before.truncate(depth);
    rest
}

fn absolute<'a>(here: &[&'a str], path: &'a [String]) -> Vec<&'a str> {
    let mut all = if path[0] == "crate" {
        Vec::new()
    } else {
        here.to_vec()
    };
    for name in path {
        match name.as_str() {
            "crate" | "self" => {}
            "super" => drop(all.pop()),
            name => all.push(name),
        }
    }
    all
}

/// The file of the innermost module that a path names.
fn file_of(path: &[&str], files: &BTreeMap<String, String>) -> Option<String> {
    (1..=path.len()).rev().find_map(|length| {
        let name = path[..length].join("/");
        let candidates = [format!("{name}.rs"), format!("{name}/mod.rs")];
        candidates.into_iter().find(|file| files.contains_key(file))
    })
}
