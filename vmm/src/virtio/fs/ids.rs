//! Whose files the guest sees: the translation of user and group ids.
//! It owns the two directions of the map. It never changes the ids of a process or a file.
//!
//! To the host, every id of the guest is the user the server runs as: whatever a guest id makes belongs to that
//! user, and a `chown` to any id is a `chown` to that user. To the guest, that user and its primary group are the
//! agent's, ids of others are shown as they are, and a host id which happens to equal the agent's is shown as
//! nobody's, since the agent does not own it.

/// The user and the group of the agent in the guest.
pub const AGENT_ID: u32 = 1000;
/// Linux `overflowuid`.
pub const NOBODY_ID: u32 = 65534;

/// The host's ids the server runs with.
#[derive(Clone, Copy, Debug)]
pub struct Ids {
    pub uid: u32,
    pub gid: u32,
}

impl Ids {
    pub fn of_process() -> Self {
        Self { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() }
    }

    pub fn shown_uid(self, uid: u32) -> u32 {
        shown(uid, self.uid)
    }

    pub fn shown_gid(self, gid: u32) -> u32 {
        shown(gid, self.gid)
    }
}

fn shown(id: u32, own: u32) -> u32 {
    match id {
        id if id == own => AGENT_ID,
        AGENT_ID => NOBODY_ID,
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_servers_user_is_the_agent() {
        let ids = Ids { uid: 501, gid: 20 };
        assert_eq!((ids.shown_uid(501), ids.shown_gid(20)), (AGENT_ID, AGENT_ID));
        assert_eq!((ids.shown_uid(0), ids.shown_gid(0)), (0, 0));
        assert_eq!((ids.shown_uid(AGENT_ID), ids.shown_gid(AGENT_ID)), (NOBODY_ID, NOBODY_ID));
        let same = Ids { uid: AGENT_ID, gid: AGENT_ID };
        assert_eq!((same.shown_uid(AGENT_ID), same.shown_gid(AGENT_ID)), (AGENT_ID, AGENT_ID));
    }
}
