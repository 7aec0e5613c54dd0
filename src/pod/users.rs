//! Who a container runs as: uid, gid, supplementary groups and home, from the request, the image's USER, and the
//! /etc/passwd and /etc/group of the root file system, which are an attacker's bytes.

use std::fs;
use std::os::fd::AsFd;
use std::path::Path;

use crate::image::{ImageUser, Principal};
use crate::pod::error::{PodError, quoted};
use crate::pod::paths;
use crate::proto::cri;

/// Largest /etc/passwd or /etc/group that is read: some ten thousand users.
const DATABASE_LIMIT_BYTES: u64 = 4 << 20;
/// Most supplementary groups that a process may have (NGROUPS_MAX).
const GROUP_LIMIT: usize = 65536;
/// Ids are below this: what does not fit is refused, never wrapped.
const ID_LIMIT: i64 = 1 << 31;

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ContainerUser {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// The primary group first, none twice.
    pub(crate) groups: Vec<u32>,
    pub(crate) home: String,
}

/// The two files of a root file system.
#[derive(Debug, Default)]
pub(crate) struct Databases {
    passwd: String,
    group: String,
}

struct Passwd<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

impl Databases {
    /// Reads both, links resolved inside the root; a missing file is an empty one.
    pub(crate) fn read(root: impl AsFd) -> Result<Self, PodError> {
        let read = |path| -> Result<String, PodError> {
            let bytes = paths::read_in_root(root.as_fd(), path, DATABASE_LIMIT_BYTES)?.unwrap_or_default();
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        Ok(Self { passwd: read("/etc/passwd")?, group: read("/etc/group")? })
    }

    fn users(&self) -> impl Iterator<Item = Passwd<'_>> {
        // A line whose uid or gid is empty or a word is no user.
        self.passwd.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let (name, _password) = (fields.next()?, fields.next()?);
            let (uid, gid) = (number(fields.next()?)?, number(fields.next()?)?);
            let home = fields.nth(1).unwrap_or_default();
            (!name.is_empty()).then_some(Passwd { name, uid, gid, home })
        })
    }

    fn groups(&self) -> impl Iterator<Item = Group<'_>> {
        self.group.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let (name, _password) = (fields.next()?, fields.next()?);
            let gid = number(fields.next()?)?;
            (!name.is_empty()).then_some(Group { name, gid, members: fields.next().unwrap_or_default() })
        })
    }

    fn find_user(&self, principal: &Principal) -> Option<Passwd<'_>> {
        self.users().find(|u| match principal {
            Principal::Id(id) => u.uid == *id,
            Principal::Name(name) => u.name == name,
        })
    }

    fn memberships(&self, user: &str) -> impl Iterator<Item = u32> {
        self.groups().filter(move |g| g.members.split(',').any(|m| m == user)).map(|g| g.gid)
    }
}

fn number(text: &str) -> Option<u32> {
    let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|n: &u32| plain && i64::from(*n) < ID_LIMIT)
}

fn id(what: &str, value: i64) -> Result<u32, PodError> {
    u32::try_from(value)
        .ok()
        .filter(|_| value < ID_LIMIT)
        .ok_or_else(|| PodError::invalid(format!("{what} {value} is not a number from 0 to {}", ID_LIMIT - 1)))
}

impl ContainerUser {
    /// Where the kernel lets nobody change supplementary groups: what the request itself asks for is refused, what only
    /// the image says is left out and told. The primary group is set another way.
    pub(crate) fn without_groups(
        mut self,
        security: &cri::LinuxContainerSecurityContext,
    ) -> Result<(Self, Option<String>), PodError> {
        if let Some(group) = security.supplemental_groups.iter().find(|group| **group != i64::from(self.gid)) {
            return Err(PodError::precondition(format!(
                "the supplementary group {group} is asked for, but this node's user namespace denies setgroups: make it with \
                 newgidmap (unshare --map-root-user --map-auto, rootlesskit)"
            )));
        }
        let lost: Vec<String> = self.groups.iter().filter(|group| **group != self.gid).map(u32::to_string).collect();
        let told = "groups that the image gives its user are left out (setgroups is denied in this user namespace)";
        self.groups.clear();
        Ok((self, (!lost.is_empty()).then(|| format!("{told}: {}", lost.join(", ")))))
    }

    /// Refuses ids that the node does not have: the kernel would, without a name.
    pub(crate) fn check_mapped(&self) -> Result<(), PodError> {
        let groups = [self.gid].into_iter().chain(self.groups.iter().copied());
        check_mapped("user", Path::new("/proc/self/uid_map"), [self.uid])?;
        check_mapped("group", Path::new("/proc/self/gid_map"), groups)
    }
}

fn check_mapped(what: &str, map: &Path, ids: impl IntoIterator<Item = u32>) -> Result<(), PodError> {
    let text = fs::read_to_string(map).map_err(|e| PodError::io(format!("cannot read {}", map.display()), &e))?;
    match ids.into_iter().find(|id| !is_mapped(&text, *id)) {
        Some(id) => Err(PodError::precondition(format!(
            "the container would run as {what} {id}, which this node has not got: its {what} ids are {}; give whoever runs it more \
             subordinate ids, or the container another {what}",
            ranges(&text)
        ))),
        None => Ok(()),
    }
}

/// First id and count of each line of a map.
fn lines(map: &str) -> impl Iterator<Item = (u32, u32)> {
    map.lines().filter_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        Some((fields.next()?.parse().ok()?, fields.nth(1)?.parse().ok()?))
    })
}

fn is_mapped(map: &str, id: u32) -> bool {
    lines(map).any(|(first, count)| id >= first && id - first < count)
}

fn ranges(map: &str) -> String {
    let range = |(first, count): (u32, u32)| format!("{first} to {}", first.saturating_add(count.saturating_sub(1)));
    lines(map).map(range).collect::<Vec<_>>().join(", ")
}

/// Resolves the wish of `security` over the image's USER.
pub(crate) fn resolve(
    security: &cri::LinuxContainerSecurityContext,
    image: &ImageUser,
    databases: &Databases,
) -> Result<ContainerUser, PodError> {
    let asked = asked_user(security)?;
    if asked.is_none() && security.run_as_group.is_some() {
        return Err(PodError::invalid("run_as_group is given without run_as_user or run_as_username"));
    }
    let user = asked.clone().or_else(|| image.user.clone()).unwrap_or(Principal::Id(0));
    let entry = databases.find_user(&user);
    let uid = match (&user, &entry) {
        (_, Some(entry)) => entry.uid,
        (Principal::Id(id), None) => *id,
        (Principal::Name(name), None) => {
            let message = format!("the image's /etc/passwd has no user {:?}", quoted(name));
            return Err(PodError::precondition(message));
        }
    };
    let gid = match (&security.run_as_group, &image.group) {
        (Some(group), _) => id("run_as_group", group.value)?,
        (None, Some(group)) if asked.is_none() => find_group(group, databases)?,
        _ => entry.as_ref().map_or(0, |e| e.gid),
    };
    let groups = supplementary(security, gid, entry.as_ref().map(|e| e.name), databases)?;
    let home = entry.map_or("", |e| e.home);
    let home = if home.starts_with('/') && !home.contains('\0') { home } else { "/" };
    Ok(ContainerUser { uid, gid, groups, home: home.to_owned() })
}

fn asked_user(security: &cri::LinuxContainerSecurityContext) -> Result<Option<Principal>, PodError> {
    let name = security.run_as_username.as_str();
    match &security.run_as_user {
        Some(user) => Ok(Some(Principal::Id(id("run_as_user", user.value)?))),
        None if name.is_empty() => Ok(None),
        None if name.bytes().all(|b| b.is_ascii_digit()) => {
            // A number out of range is an error, never a name.
            let value = name.parse().unwrap_or(i64::MAX);
            Ok(Some(Principal::Id(id("run_as_username", value)?)))
        }
        None => Ok(Some(Principal::Name(name.to_owned()))),
    }
}

fn find_group(group: &Principal, databases: &Databases) -> Result<u32, PodError> {
    match group {
        Principal::Id(id) => Ok(*id),
        Principal::Name(name) => {
            databases.groups().find(|g| g.name == name).map(|g| g.gid).ok_or_else(|| {
                PodError::precondition(format!("the image's /etc/group has no group {:?}", quoted(name)))
            })
        }
    }
}

/// Merge: the request's groups and those that list the user in the image; Strict: the request's alone.
fn supplementary(
    security: &cri::LinuxContainerSecurityContext,
    gid: u32,
    user: Option<&str>,
    databases: &Databases,
) -> Result<Vec<u32>, PodError> {
    let mut groups = vec![gid];
    let mut add = |group| {
        if !groups.contains(&group) {
            groups.push(group);
        }
    };
    if let (cri::SupplementalGroupsPolicy::Merge, Some(user)) = (security.supplemental_groups_policy(), user) {
        databases.memberships(user).take(GROUP_LIMIT).for_each(&mut add);
    }
    for group in &security.supplemental_groups {
        add(id("supplemental_groups", *group)?);
    }
    if groups.len() > GROUP_LIMIT {
        return Err(PodError::invalid(format!("more than {GROUP_LIMIT} supplementary groups")));
    }
    Ok(groups)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33::/var/www:/bin/sh\n\
        app:x:1000:1000::/home/app:/bin/sh\nempty:x::0::/:/bin/sh\nword:x:zero:0::/:/bin/sh\nhuge:x:4294967296:0::/:\n\
        relative:x:1001:1001::etc:\n1:x:55:55::/:\n";
    const GROUP: &str = "root:x:0:\nextra:x:50000:app,www-data\nother:x:60000:app\nnobody:x:70000:approx\n";

    fn databases() -> Databases {
        Databases { passwd: PASSWD.into(), group: GROUP.into() }
    }

    fn value(value: i64) -> Option<cri::Int64Value> {
        Some(cri::Int64Value { value })
    }

    fn wish(user: Option<i64>, name: &str, group: Option<i64>) -> cri::LinuxContainerSecurityContext {
        cri::LinuxContainerSecurityContext {
            run_as_user: user.and_then(value),
            run_as_username: name.into(),
            run_as_group: group.and_then(value),
            ..Default::default()
        }
    }

    fn image(user: Option<Principal>, group: Option<Principal>) -> ImageUser {
        ImageUser { user, group }
    }

    #[test]
    fn the_request_goes_before_the_image_and_the_image_before_root() {
        let name = |n: &str| Some(Principal::Name(n.into()));
        let table = [
            (wish(None, "", None), image(None, None), (0, 0, vec![0], "/root")),
            (wish(None, "", None), image(name("www-data"), None), (33, 33, vec![33, 50000], "/var/www")),
            (
                wish(None, "", None),
                image(Some(Principal::Id(1000)), None),
                (1000, 1000, vec![1000, 50000, 60000], "/home/app"),
            ),
            (
                wish(None, "", None),
                image(name("app"), Some(Principal::Id(7))),
                (1000, 7, vec![7, 50000, 60000], "/home/app"),
            ),
            (wish(None, "", None), image(name("app"), name("extra")), (1000, 50000, vec![50000, 60000], "/home/app")),
            (wish(Some(1003), "", None), image(name("app"), name("extra")), (1003, 0, vec![0], "/")),
            (wish(Some(1000), "", Some(5)), image(None, None), (1000, 5, vec![5, 50000, 60000], "/home/app")),
            (wish(None, "app", None), image(None, None), (1000, 1000, vec![1000, 50000, 60000], "/home/app")),
            (wish(None, "1000", None), image(None, None), (1000, 1000, vec![1000, 50000, 60000], "/home/app")),
            // A name made of digits is a number, never the user of that name.
            (wish(None, "1", None), image(None, None), (1, 0, vec![0], "/")),
            (wish(Some(1001), "", None), image(None, None), (1001, 1001, vec![1001], "/")),
        ];
        for (security, image, (uid, gid, groups, home)) in table {
            let expected = ContainerUser { uid, gid, groups, home: home.into() };
            assert_eq!(resolve(&security, &image, &databases()).expect("a user"), expected, "{security:?} {image:?}");
        }
    }

    #[test]
    fn an_id_is_mapped_where_a_line_holds_it() {
        let map = "         0       1500          1\n         1     100000      65536\n";
        assert!([0, 1, 65536].into_iter().all(|id| is_mapped(map, id)));
        assert!(!is_mapped(map, 65537) && !is_mapped("", 0));
        assert!(is_mapped("0 0 4294967295", 4_000_000_000));
        assert_eq!(ranges(map), "0 to 0, 1 to 65536");
    }

    #[test]
    fn numbers_out_of_range_and_unknown_names_are_refused() {
        for bad in [
            wish(Some(-1), "", None),
            wish(Some(1 << 31), "", None),
            wish(Some(1 << 32), "", None),
            wish(None, "4294967296", None),
            wish(None, "99999999999999999999", None),
            wish(Some(0), "", Some(-1)),
            wish(None, "", Some(5)),
            wish(None, "nobody-here", None),
            wish(None, "empty", None),
            wish(None, "word", None),
            wish(None, "huge", None),
        ] {
            assert!(resolve(&bad, &ImageUser::default(), &databases()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn where_no_group_can_be_set_those_asked_for_are_refused_and_the_images_told() {
        let mut security = wish(Some(1000), "", None);
        let resolved = |security: &_| resolve(security, &ImageUser::default(), &databases()).expect("a user");
        let (user, told) = resolved(&security).without_groups(&security).expect("nobody asked");
        assert_eq!((user.uid, user.gid, user.groups), (1000, 1000, vec![]));
        assert!(told.expect("two are lost").contains("50000, 60000"));
        security.supplemental_groups = vec![1000];
        assert!(resolved(&security).without_groups(&security).is_ok(), "its primary group");
        security.supplemental_groups = vec![1000, 7];
        let refused = resolved(&security).without_groups(&security).expect_err("asked for").to_string();
        assert!(refused.contains("group 7") && refused.contains("setgroups"), "{refused}");
    }

    #[test]
    fn supplementary_groups_follow_the_policy() {
        let mut security = wish(Some(1000), "", None);
        security.supplemental_groups = vec![1234, 50000];
        let merged = resolve(&security, &ImageUser::default(), &databases()).expect("a user");
        assert_eq!(merged.groups, [1000, 50000, 60000, 1234]);
        security.set_supplemental_groups_policy(cri::SupplementalGroupsPolicy::Strict);
        let strict = resolve(&security, &ImageUser::default(), &databases()).expect("a user");
        assert_eq!(strict.groups, [1000, 1234, 50000]);
        security.supplemental_groups = vec![-5];
        assert!(resolve(&security, &ImageUser::default(), &databases()).is_err());
    }
}
