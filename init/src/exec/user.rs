//! Who a command runs as: `user[:group]` looked up in the container's passwd and group files.
//! It owns their format and Docker's rules for what is not listed. It reads no file: the text is given to it.

/// The highest id that may be given by number, as in Docker.
const ID_MAX: u32 = i32::MAX as u32;

/// A user, as far as a command cares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// Its id.
    pub uid: u32,
    /// Its group's id, or that of the group asked for.
    pub gid: u32,
    /// Further groups that list it as a member; none when a group was asked for.
    pub groups: Vec<u32>,
    /// Its name; the id in decimal when it has none.
    pub name: Vec<u8>,
    /// Its home; `/` when it has none.
    pub home: Vec<u8>,
    /// Its shell; empty when it has none.
    pub shell: Vec<u8>,
}

/// Finds the user that `spec` means. A number that nobody has is still a user, with group 0.
pub fn resolve(spec: &str, passwd: &[u8], group: &[u8]) -> Result<User, String> {
    let (user, wanted_group) = spec.split_once(':').unwrap_or((spec, ""));
    if wanted_group.contains(':') {
        return Err(format!("user {spec:?} is not NAME or NAME:GROUP"));
    }
    let mut found = find_user(user, passwd)?;
    if wanted_group.is_empty() {
        let lists_us = |it: &Group<'_>| it.members.split(|&b| b == b',').any(|name| name == found.name);
        found.groups = groups(group).filter(lists_us).map(|it| it.gid).collect();
    } else {
        found.gid = find_group(wanted_group, group)?;
    }
    Ok(found)
}

/// `env` with what a login would have set, where it is missing.
pub fn complete(mut env: Vec<Vec<u8>>, user: &User) -> Vec<Vec<u8>> {
    let defaults =
        [("HOME=", &user.home), ("USER=", &user.name), ("LOGNAME=", &user.name), ("SHELL=", &user.shell)];
    for (key, value) in defaults {
        if !value.is_empty() && !env.iter().any(|it| it.starts_with(key.as_bytes())) {
            env.push([key.as_bytes(), value].concat());
        }
    }
    env
}

fn find_user(wanted: &str, passwd: &[u8]) -> Result<User, String> {
    let number = number(wanted.as_bytes());
    let matches = |it: &User| it.name == wanted.as_bytes() || Some(it.uid) == number;
    if let Some(user) = users(passwd).find(matches) {
        return Ok(user);
    }
    let uid = number.ok_or_else(|| format!("user {wanted:?} is not in the sandbox's /etc/passwd"))?;
    let name = wanted.as_bytes().to_vec();
    Ok(User { uid, gid: 0, groups: Vec::new(), name, home: b"/".to_vec(), shell: Vec::new() })
}

fn find_group(wanted: &str, group: &[u8]) -> Result<u32, String> {
    let number = number(wanted.as_bytes());
    let matches = |it: &Group<'_>| it.name == wanted.as_bytes() || Some(it.gid) == number;
    let listed = groups(group).find(matches).map(|it| it.gid);
    listed.or(number).ok_or_else(|| format!("group {wanted:?} is not in the sandbox's /etc/group"))
}

/// passwd(5): name, password, uid, gid, comment, home, shell. Lines that are not so are passed over.
fn users(passwd: &[u8]) -> impl Iterator<Item = User> {
    lines(passwd).filter_map(|[name, _, uid, gid, _, home, shell]| {
        Some(User {
            uid: number(uid)?,
            gid: number(gid)?,
            groups: Vec::new(),
            name: name.to_vec(),
            home: home.to_vec(),
            shell: shell.to_vec(),
        })
    })
}

struct Group<'a> {
    name: &'a [u8],
    gid: u32,
    members: &'a [u8],
}

/// group(5): name, password, gid, members with commas between.
fn groups(group: &[u8]) -> impl Iterator<Item = Group<'_>> {
    lines(group).filter_map(|[name, _, gid, members]| Some(Group { name, gid: number(gid)?, members }))
}

/// The lines that have exactly `N` fields.
fn lines<const N: usize>(text: &[u8]) -> impl Iterator<Item = [&[u8]; N]> {
    text.split(|&b| b == b'\n').filter_map(|line| {
        let mut fields = line.split(|&b| b == b':');
        let mut found = [&[][..]; N];
        for field in &mut found {
            *field = fields.next()?;
        }
        fields.next().is_none().then_some(found)
    })
}

fn number(digits: &[u8]) -> Option<u32> {
    let plain = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    let text = std::str::from_utf8(digits).ok()?;
    text.parse().ok().filter(|&it| plain && it <= ID_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/bash\n\
        # comment\nbroken:x:1\ntoo:x:many:0::/:/bin/sh\n\
        agent:x:1000:1000::/home/agent:/bin/bash\n1234:x:77:78::/n:\nlast:x:1001:5::/l:/bin/sh";
    const GROUP: &[u8] =
        b"root:x:0:\nsudo:x:27:agent,last\ndocker:x:999:last,agent\nbad:x:y:agent\nagent:x:1000:\n";

    #[track_caller]
    fn ids(spec: &str) -> (u32, u32, Vec<u32>) {
        let user = resolve(spec, PASSWD, GROUP).unwrap();
        (user.uid, user.gid, user.groups)
    }

    #[test]
    fn a_name_or_number_gives_ids_and_groups() {
        assert_eq!(ids("agent"), (1000, 1000, vec![27, 999]));
        assert_eq!(ids("1000"), (1000, 1000, vec![27, 999]));
        assert_eq!(ids("root"), (0, 0, vec![]));
        assert_eq!(ids("last"), (1001, 5, vec![27, 999]));
        assert_eq!(ids("1234"), (77, 78, vec![]), "a name of digits comes before a number");
    }

    #[test]
    fn a_group_that_is_asked_for_is_the_only_one() {
        assert_eq!(ids("agent:sudo"), (1000, 27, vec![]));
        assert_eq!(ids("agent:4242"), (1000, 4242, vec![]));
        assert_eq!(ids("root:"), (0, 0, vec![]));
    }

    #[test]
    fn a_number_that_nobody_has_is_a_user() {
        let user = resolve("99999", PASSWD, GROUP).unwrap();
        assert_eq!((user.uid, user.gid, &user.home[..]), (99999, 0, &b"/"[..]));
        resolve("2147483647", b"", b"").unwrap();
    }

    #[test]
    fn what_means_nobody_is_refused() {
        for spec in
            ["nobody", "", ":", ":root", "a:b:c", "agent:nogroup", "-1", "+1", "2147483648", "4294967295"]
        {
            resolve(spec, PASSWD, GROUP).unwrap_err();
        }
    }

    #[test]
    fn a_login_environment_fills_gaps_only() {
        let user = resolve("agent", PASSWD, GROUP).unwrap();
        let env = complete(vec![b"HOME=/elsewhere".to_vec(), b"USERS=2".to_vec()], &user);
        let expected = ["HOME=/elsewhere", "USERS=2", "USER=agent", "LOGNAME=agent", "SHELL=/bin/bash"];
        assert_eq!(env, expected.map(|it| it.as_bytes().to_vec()));
    }
}
