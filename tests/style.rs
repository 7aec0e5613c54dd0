//! What every source file is held to: the one-way rule of `src/lib.rs`, headers, and where unsafe code and the
//! libraries that make containers may be named.

use std::fs;
use std::path::{Path, PathBuf};

/// From left to right: a module names only what stands right of its own group. Modules of one group do not name each
/// other. `demo` is data, so it stands with the wire types.
const ORDER: [&[&str]; 7] = [
    &["main"],
    &["cli"],
    &["daemon"],
    &["cri", "streaming", "metrics"],
    &["pod"],
    &["image", "executor", "network", "rootless"],
    &["store", "config"],
];
/// What everyone may name, and what names nobody.
const GROUND: [&str; 3] = ["sys", "proto", "demo"];
/// A file longer than this needs a reason, which its header gives after this word.
const LINES_MAX: usize = 500;
const LENGTH_REASON: &str = "Longer than most files";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn rust_files(directory: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![root().join(directory)];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(&directory).expect("a directory of the repository") {
            let path = entry.expect("a directory of the repository").path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Path below the repository, for messages and comparisons.
fn short(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

/// The part of a file that is in the product, without comments.
fn product_code(text: &str) -> String {
    // Tests stand last in a file.
    let product = text.split("#[cfg(test)]\nmod ").next().unwrap_or(text);
    product.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// The first path component below `src`, without `.rs`.
fn module_of(path: &Path) -> String {
    let below = path.strip_prefix(root().join("src")).expect("a file of src");
    let first = below.components().next().expect("a name").as_os_str().to_string_lossy();
    first.trim_end_matches(".rs").to_owned()
}

fn rank(module: &str) -> Option<usize> {
    if GROUND.contains(&module) {
        return Some(ORDER.len());
    }
    ORDER.iter().position(|group| group.contains(&module))
}

/// Top modules that the code names through `crate::`, also in a group `crate::{a, b::{c, d}}`.
fn named(code: &str) -> Vec<String> {
    let identifier = |text: &str| text.trim().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    let pieces = code.split("crate::").skip(1);
    pieces
        .flat_map(|piece| match piece.strip_prefix('{') {
            Some(group) => outermost(group).split(',').map(identifier).collect::<Vec<String>>(),
            None => vec![identifier(piece)],
        })
        .filter(|name| !name.is_empty())
        .collect()
}

/// A group up to its closing brace, without what inner braces hold.
fn outermost(group: &str) -> String {
    let mut depth = 0_i32;
    let mut kept = String::new();
    for character in group.chars() {
        depth += i32::from(character == '{') - i32::from(character == '}');
        if depth < 0 {
            break;
        }
        if depth == 0 {
            kept.push(character);
        }
    }
    kept
}

#[test]
fn modules_name_only_what_stands_right_of_them() {
    let mut wrong = Vec::new();
    for path in rust_files("src") {
        let module = module_of(&path);
        if module == "lib" || short(&path).ends_with("_tests.rs") || short(&path).ends_with("/tests.rs") {
            continue;
        }
        let own = rank(&module).unwrap_or_else(|| panic!("{}: {module} is not in the one-way rule", short(&path)));
        for name in named(&product_code(&read(&path))) {
            if let Some(other) = rank(&name)
                && name != module
                && other <= own
            {
                wrong.push(format!("{} ({module}) names {name}", short(&path)));
            }
        }
    }
    assert!(wrong.is_empty(), "against the one-way rule of src/lib.rs:\n{}", wrong.join("\n"));
}

#[test]
fn every_file_says_what_it_is() {
    let directories = ["src", "tests", "rootfs"];
    let files = directories.iter().flat_map(|directory| rust_files(directory)).chain([root().join("build.rs")]);
    let without: Vec<_> = files.filter(|path| !read(path).starts_with("//! ")).map(|path| short(&path)).collect();
    assert!(without.is_empty(), "these do not open with //! and a sentence:\n{}", without.join("\n"));
}

#[test]
fn no_file_grows_without_a_reason() {
    let long: Vec<_> = rust_files("src")
        .into_iter()
        .map(|path| (product_code(&read(&path)).lines().count(), path))
        .filter(|(lines, path)| *lines > LINES_MAX && !read(path).contains(LENGTH_REASON))
        .map(|(lines, path)| format!("{}: {lines} lines", short(&path)))
        .collect();
    assert!(long.is_empty(), "split them, or give the reason after {LENGTH_REASON:?}:\n{}", long.join("\n"));
}

#[test]
fn unsafe_code_is_in_sys_only_and_says_why_it_is_sound() {
    let mut wrong = Vec::new();
    for path in rust_files("src") {
        let text = read(&path);
        let lines: Vec<_> = text.lines().collect();
        for (at, line) in lines.iter().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            if !["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern"].iter().any(|form| code.contains(form)) {
                continue;
            }
            if module_of(&path) != "sys" {
                wrong.push(format!("{}:{}: unsafe outside src/sys", short(&path), at + 1));
            } else if !lines[at.saturating_sub(6)..at]
                .iter()
                .any(|above| above.contains("SAFETY") || above.contains("# Safety"))
            {
                wrong.push(format!("{}:{}: no SAFETY above it", short(&path), at + 1));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn one_file_names_the_library_that_makes_containers() {
    let mut wrong = Vec::new();
    for path in rust_files("src") {
        let name = short(&path);
        for line in product_code(&read(&path)).lines() {
            // The types of the OCI specification come through the library, as does its cgroup library.
            let beyond_types = line.replace("libcontainer::oci_spec", "");
            if beyond_types.contains("libcontainer::") && name != "src/executor/supervisor/runtime.rs" {
                wrong.push(format!("{name}: {}", line.trim()));
            }
        }
    }
    assert!(wrong.is_empty(), "only executor/supervisor/runtime.rs names libcontainer:\n{}", wrong.join("\n"));
}

/// An image's own words are an attacker's: only the file that checks them makes the type that the rest relies on.
#[test]
fn what_an_image_says_of_itself_is_validated_in_one_file() {
    let makes = |path: &&PathBuf| {
        let code = product_code(&read(path)).replace("struct ImageConfig {", "");
        code.contains("ImageConfig {")
    };
    let found: Vec<_> = rust_files("src").iter().filter(makes).map(|path| short(path)).collect();
    assert_eq!(found, ["src/image/config.rs"]);
}

#[test]
fn no_stub_is_left() {
    let stubs = ["todo!(", "unimplemented!(", "dbg!("];
    let left: Vec<_> = rust_files("src")
        .into_iter()
        .filter(|path| stubs.iter().any(|stub| product_code(&read(path)).contains(stub)))
        .map(|path| short(&path))
        .collect();
    assert!(left.is_empty(), "stubs are left in:\n{}", left.join("\n"));
}

#[test]
fn grouped_names_are_all_seen() {
    let code = "use crate::{config::Config, proto::{cri, x}, sys};\nuse crate::store::Id;";
    assert_eq!(named(code), ["config", "proto", "sys", "store"]);
}
