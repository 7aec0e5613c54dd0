//! Subordinate ids: what /etc/subuid and /etc/subgid (or the name service behind `getsubids`) give to a user, and
//! the map of a user namespace made of them: uid 0 is the user, 1 and up are the subordinate ids in their order.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

/// More than any machine's file holds; a longer one is refused.
const FILE_LIMIT_BYTES: u64 = 4 << 20;
/// The kernel takes 340 lines of a map.
const RANGES_LIMIT: usize = 339;
/// Ids above are negative as signed numbers, which much software cannot bear.
const ID_LIMIT: u64 = 1 << 31;

/// What one image after another asks for; a pod with ids of its own (`hostUsers: false`) asks for as many again.
pub const IDS_WANTED: u32 = 65_536;
/// Below are people and services.
const FIRST_PROPOSED: u64 = 100_000;

/// Users or groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdKind {
    /// User ids.
    User,
    /// Group ids.
    Group,
}

impl IdKind {
    /// Where subordinate ids are listed.
    pub fn file(self) -> &'static str {
        match self {
            Self::User => "/etc/subuid",
            Self::Group => "/etc/subgid",
        }
    }

    /// The setuid program that writes a map of them.
    pub fn mapper(self) -> &'static str {
        match self {
            Self::User => "newuidmap",
            Self::Group => "newgidmap",
        }
    }
}

/// Ids from `first` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdRange {
    /// Outside of the namespace.
    pub first: u32,
    /// How many.
    pub count: u32,
}

/// One line of a map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapLine {
    /// First id inside of the namespace.
    pub inside: u32,
    /// First id outside.
    pub outside: u32,
    /// How many.
    pub count: u32,
}

/// The ids cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubordinateError {
    /// None at all.
    #[error("{user} has no subordinate ids in {file}: `{mend}`", file = kind.file())]
    None {
        /// Whose.
        user: String,
        /// Which.
        kind: IdKind,
        /// See [`proposal`].
        mend: String,
    },
    /// A line that is none.
    #[error("{file}: the line {line:?} is not NAME:FIRST:COUNT with ids below 2^31", file = kind.file())]
    Malformed {
        /// Which file.
        kind: IdKind,
        /// Its text.
        line: String,
    },
    /// Two ranges share ids, or one holds the user's own.
    #[error("{file}: the ranges of {user} overlap at id {at}: correct the file", file = kind.file())]
    Overlap {
        /// Whose.
        user: String,
        /// Which file.
        kind: IdKind,
        /// The first id that is there twice.
        at: u32,
    },
    /// Cannot be read.
    #[error("cannot read {file}: {reason}", file = kind.file())]
    Unreadable {
        /// Which file.
        kind: IdKind,
        /// Why.
        reason: String,
    },
}

/// A user by both names that the files may bear.
#[derive(Debug, Clone)]
pub struct User {
    /// Login name, or the number where the user has none.
    pub name: String,
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
}

impl User {
    /// The user that this process runs as.
    pub fn current() -> Self {
        let uid = rustix::process::geteuid().as_raw();
        let gid = rustix::process::getegid().as_raw();
        let name = login_name(uid).unwrap_or_else(|| uid.to_string());
        Self { name, uid, gid }
    }

    fn own_id(&self, kind: IdKind) -> u32 {
        match kind {
            IdKind::User => self.uid,
            IdKind::Group => self.gid,
        }
    }
}

/// From /etc/passwd, else from `getent`, which asks the directory services that a static program cannot.
fn login_name(uid: u32) -> Option<String> {
    let find = |text: &str| {
        text.lines().find_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
        })
    };
    fs::read_to_string("/etc/passwd").ok().as_deref().and_then(find).or_else(|| {
        let output = Command::new("getent").args(["passwd", &uid.to_string()]).stderr(Stdio::null()).output().ok()?;
        find(&String::from_utf8(output.stdout).ok()?)
    })
}

/// The map for a node of `user`: the user as 0, then every subordinate id.
pub fn map(user: &User, kind: IdKind) -> Result<Vec<MapLine>, SubordinateError> {
    let mut ranges = parse(&read(kind)?, user, kind)?;
    if ranges.is_empty() {
        ranges = ask_name_service(user, kind);
    }
    if ranges.is_empty() {
        return Err(SubordinateError::None { user: user.name.clone(), kind, mend: proposal(user) });
    }
    check_overlap(&ranges, user, kind)?;
    Ok(lay_out(user.own_id(kind), &ranges))
}

/// The command that gives a user as many ids as an image asks for, which nobody has yet.
pub fn proposal(user: &User) -> String {
    let taken = [IdKind::User, IdKind::Group].map(|kind| read(kind).map_or(0, |text| first_free(&text)));
    let first = taken.into_iter().fold(FIRST_PROPOSED, u64::max);
    let ids = format!("{first}-{}", first + u64::from(IDS_WANTED) - 1);
    format!("sudo usermod --add-subuids {ids} --add-subgids {ids} {}", user.name)
}

/// Behind every range that somebody has.
fn first_free(text: &str) -> u64 {
    let end = |line: &str| {
        let mut fields = line.split(':').skip(1);
        let range = range(fields.next()?, fields.next()?)?;
        Some(u64::from(range.first) + u64::from(range.count))
    };
    text.lines().filter_map(end).max().unwrap_or(0)
}

fn read(kind: IdKind) -> Result<String, SubordinateError> {
    let unreadable = |reason: String| SubordinateError::Unreadable { kind, reason };
    let path = Path::new(kind.file());
    match fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(String::new()),
        Err(error) => return Err(unreadable(error.to_string())),
        Ok(meta) if !meta.is_file() || meta.len() > FILE_LIMIT_BYTES => {
            return Err(unreadable(format!("it is no regular file below {FILE_LIMIT_BYTES} bytes")));
        }
        Ok(_) => {}
    }
    fs::read_to_string(path).map_err(|error| unreadable(error.to_string()))
}

/// Where the file has nothing, a directory service may (`subid:` in nsswitch.conf).
fn ask_name_service(user: &User, kind: IdKind) -> Vec<IdRange> {
    let mut command = Command::new("getsubids");
    if kind == IdKind::Group {
        command.arg("-g");
    }
    let Ok(output) = command.arg(&user.name).stderr(Stdio::null()).output() else { return Vec::new() };
    // Lines such as `0: tester 100000 65536`.
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| {
            let mut fields = line.split_ascii_whitespace().skip(2);
            range(fields.next()?, fields.next()?)
        })
        .take(RANGES_LIMIT)
        .collect()
}

fn parse(text: &str, user: &User, kind: IdKind) -> Result<Vec<IdRange>, SubordinateError> {
    let mut ranges = Vec::new();
    let uid = user.uid.to_string();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let mut fields = line.split(':');
        let owner = fields.next().unwrap_or_default();
        if owner != user.name && owner != uid {
            continue;
        }
        let malformed = || SubordinateError::Malformed { kind, line: line.chars().take(120).collect() };
        let (Some(first), Some(count), None) = (fields.next(), fields.next(), fields.next()) else {
            return Err(malformed());
        };
        let found = range(first, count).ok_or_else(malformed)?;
        if found.count > 0 && !ranges.contains(&found) && ranges.len() < RANGES_LIMIT {
            ranges.push(found);
        }
    }
    Ok(ranges)
}

fn range(first: &str, count: &str) -> Option<IdRange> {
    let range = IdRange { first: first.trim().parse().ok()?, count: count.trim().parse().ok()? };
    (u64::from(range.first) + u64::from(range.count) <= ID_LIMIT).then_some(range)
}

fn check_overlap(ranges: &[IdRange], user: &User, kind: IdKind) -> Result<(), SubordinateError> {
    let mut all = ranges.to_vec();
    all.push(IdRange { first: user.own_id(kind), count: 1 });
    all.sort_by_key(|range| range.first);
    for pair in all.windows(2) {
        if u64::from(pair[0].first) + u64::from(pair[0].count) > u64::from(pair[1].first) {
            return Err(SubordinateError::Overlap { user: user.name.clone(), kind, at: pair[1].first });
        }
    }
    Ok(())
}

fn lay_out(own: u32, ranges: &[IdRange]) -> Vec<MapLine> {
    let mut lines = vec![MapLine { inside: 0, outside: own, count: 1 }];
    let mut inside = 1u32;
    for range in ranges {
        // What does not fit below 2^31 inside is left out.
        let count = range.count.min(ID_LIMIT as u32 - inside);
        if count > 0 {
            lines.push(MapLine { inside, outside: range.first, count });
            inside += count;
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tester() -> User {
        User { name: "tester".into(), uid: 1500, gid: 1500 }
    }

    fn ranges(text: &str) -> Result<Vec<IdRange>, SubordinateError> {
        let found = parse(text, &tester(), IdKind::User)?;
        check_overlap(&found, &tester(), IdKind::User)?;
        Ok(found)
    }

    #[test]
    fn ranges_are_found_by_name_and_by_number_in_order() {
        let text = "root:1:9\n# no\ntester:300000:10\n\n1500:100000:65536\n15:5:5\n";
        let expected = [IdRange { first: 300000, count: 10 }, IdRange { first: 100000, count: 65536 }];
        assert_eq!(ranges(text), Ok(expected.to_vec()));
    }

    #[test]
    fn malformed_and_oversized_lines_of_the_user_are_refused_and_those_of_others_are_not_read() {
        for bad in [
            "tester:1",
            "tester:1:2:3",
            "tester:-1:5",
            "tester:x:5",
            "tester:2147483647:2",
            "tester:4294967295:1",
            "tester:1:99999999999",
        ] {
            assert!(matches!(ranges(bad), Err(SubordinateError::Malformed { .. })), "{bad}");
        }
        assert_eq!(ranges("other:x:y\nother"), Ok(vec![]));
    }

    #[test]
    fn overlapping_ranges_are_refused_and_the_same_line_twice_is_one() {
        assert!(matches!(ranges("tester:100:50\ntester:149:9"), Err(SubordinateError::Overlap { at: 149, .. })));
        assert!(matches!(ranges("tester:1000:1000"), Err(SubordinateError::Overlap { at: 1500, .. })));
        assert_eq!(ranges("tester:100:50\ntester:100:50").map(|r| r.len()), Ok(1));
    }

    #[test]
    fn what_is_proposed_is_nobodys() {
        assert_eq!(first_free(""), 0);
        assert_eq!(first_free("a:100000:65536\nb:300000:5\nc:200000:65536\nodd\nx:y:z\n"), 300_005);
        assert!(proposal(&tester()).ends_with(" tester"));
    }

    #[test]
    fn the_user_is_zero_and_the_ranges_follow() {
        let lines = lay_out(1500, &[IdRange { first: 9000, count: 10 }, IdRange { first: 100, count: 5 }]);
        let expected = [
            MapLine { inside: 0, outside: 1500, count: 1 },
            MapLine { inside: 1, outside: 9000, count: 10 },
            MapLine { inside: 11, outside: 100, count: 5 },
        ];
        assert_eq!(lines, expected);
    }
}
