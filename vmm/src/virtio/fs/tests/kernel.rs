//! The server under a real FUSE client: the kernel of the machine the test runs on, by `/dev/fuse`.
//! It needs privileges for the mount, and says so where it has none. What the host's kernel makes of our replies is
//! what the guest's will: coherence, page cache and mappings cannot be tested without one.

use std::collections::BTreeSet;
use std::fs::{self, File, Permissions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, chown};
use std::path::PathBuf;
use std::thread::JoinHandle;

use rustix::fs::{Gid, Uid};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};
use tempfile::TempDir;

use super::client::path_fd;
use crate::config::{Rules, Share};
use crate::virtio::fs::server::Server;
use crate::virtio::fs::worker::apply_no_umask;

/// A share, mounted beside itself.
pub(super) struct Mount {
    folder: TempDir,
    server: Option<JoinHandle<()>>,
}

impl Mount {
    /// `None` without the privileges.
    fn new(read_only: bool) -> Option<Self> {
        Self::with(read_only, Rules::default())
    }

    fn with(read_only: bool, rules: Rules) -> Option<Self> {
        Self::served(read_only, rules, || ())
    }

    /// As a sandbox has it: the server has no privileges, and the folder is its user's.
    pub(super) fn of_user(id: u32) -> Option<Self> {
        let mount = Self::served(false, Rules::default(), move || become_user(id))?;
        chown(mount.host(""), Some(id), Some(id)).unwrap();
        Some(mount)
    }

    /// `prepare` is called in the server's thread before it begins.
    fn served(read_only: bool, rules: Rules, prepare: impl FnOnce() + Send + 'static) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
        for name in ["share", "mnt"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        let Ok(device) = File::options().read(true).write(true).open("/dev/fuse") else {
            eprintln!("skipped: /dev/fuse is not to be had");
            return None;
        };
        // As virtio-fs mounts: the kernel checks modes, and every user may come.
        let fd = device.as_raw_fd();
        let options = format!("fd={fd},rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other");
        let options = std::ffi::CString::new(options).unwrap();
        if let Err(error) =
            mount("share", folder.path().join("mnt"), "fuse", MountFlags::empty(), Some(&*options))
        {
            eprintln!("skipped: mount: {error}");
            return None;
        }
        let root = path_fd(&folder.path().join("share"));
        let share = Share { tag: "t".to_owned(), root, read_only, only: None, rules };
        let server = std::thread::spawn(move || {
            prepare();
            serve(&device.into(), Server::new(share).unwrap());
        });
        Some(Self { folder, server: Some(server) })
    }

    pub(super) fn guest(&self, path: &str) -> PathBuf {
        self.folder.path().join("mnt").join(path)
    }

    pub(super) fn host(&self, path: &str) -> PathBuf {
        self.folder.path().join("share").join(path)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        unmount(self.folder.path().join("mnt"), UnmountFlags::DETACH).unwrap();
        self.server.take().unwrap().join().unwrap();
    }
}

/// Gives the calling thread the rights of a user who is nobody else here.
fn become_user(id: u32) {
    let (uid, gid) = (Uid::from_raw(id), Gid::from_raw(id));
    set_thread_groups(&[]).unwrap();
    set_thread_res_gid(gid, gid, gid).unwrap();
    set_thread_res_uid(uid, uid, uid).unwrap();
}

/// Serves until the file system is unmounted.
fn serve(device: &OwnedFd, mut server: Server) {
    apply_no_umask();
    server.enter_jail();
    let (mut request, mut reply) = (vec![0; (1 << 20) + 4096], vec![0; (1 << 20) + 4096]);
    loop {
        let length = match rustix::io::read(device, &mut request) {
            Ok(length) => length,
            Err(rustix::io::Errno::NODEV) => return,
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::INTR) => continue,
            Err(error) => panic!("read of /dev/fuse: {error}"),
        };
        let length = server.answer(&mut request[..length], &mut reply).unwrap();
        if length > 0 {
            // ENOENT: whoever asked has been killed.
            let _written = rustix::io::write(device, &reply[..length]);
        }
    }
}

#[test]
fn a_change_on_either_side_is_seen_on_the_other_at_once() {
    let Some(mount) = Mount::new(false) else { return };
    for round in 0..200 {
        let text = format!("{round:04}");
        fs::write(mount.host("f"), &text).unwrap();
        assert_eq!(fs::read_to_string(mount.guest("f")).unwrap(), text);
        fs::write(mount.guest("f"), format!("{text} from the guest")).unwrap();
        assert_eq!(fs::read_to_string(mount.host("f")).unwrap(), format!("{text} from the guest"));
        fs::rename(mount.host("f"), mount.host(&text)).unwrap();
        assert!(!mount.guest("f").exists() && mount.guest(&text).exists());
        fs::remove_file(mount.host(&text)).unwrap();
        assert!(fs::metadata(mount.guest(&text)).is_err());
    }
}

#[test]
fn an_open_file_shows_what_the_host_writes_into_it() {
    let Some(mount) = Mount::new(false) else { return };
    fs::write(mount.host("f"), "0000").unwrap();
    let mut guest = File::options().read(true).append(true).open(mount.guest("f")).unwrap();
    let host = File::options().append(true).open(mount.host("f")).unwrap();
    for round in 1..200_u32 {
        (&host).write_all(&round.to_le_bytes()).unwrap();
        guest.write_all(&round.to_be_bytes()).unwrap();
        let mut bytes = [0; 8];
        guest.seek(SeekFrom::End(-8)).unwrap();
        guest.read_exact(&mut bytes).unwrap();
        assert_eq!(bytes, (u64::from(round) | u64::from(round.swap_bytes()) << 32).to_le_bytes());
    }
    assert_eq!(fs::metadata(mount.host("f")).unwrap().len(), 4 + 199 * 8);
}

#[test]
fn sparse_files_locks_and_copies_behave() {
    let Some(mount) = Mount::new(false) else { return };
    let file = File::create_new(mount.guest("sparse")).unwrap();
    file.set_len(1 << 26).unwrap();
    file.write_all_at(b"data", 1 << 25).unwrap();
    file.sync_all().unwrap();
    assert_eq!(file.metadata().unwrap().blocks(), fs::metadata(mount.host("sparse")).unwrap().blocks());
    let data = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(0)).unwrap();
    assert_eq!(data, 1 << 25);
    file.try_lock().unwrap();
    let second = File::open(mount.guest("sparse")).unwrap();
    assert!(second.try_lock_shared().is_err());
    io::copy(&mut &second, &mut File::create(mount.guest("copy")).unwrap()).unwrap();
    assert_eq!(fs::metadata(mount.host("copy")).unwrap().len(), 1 << 26);
}

#[test]
fn files_without_names_and_names_without_files_behave() {
    let Some(mount) = Mount::new(false) else { return };
    let unnamed =
        File::options().read(true).write(true).custom_flags(libc::O_TMPFILE).open(mount.guest("")).unwrap();
    unnamed.write_all_at(b"text", 0).unwrap();
    assert_eq!(unnamed.metadata().unwrap().nlink(), 0);
    let gone = File::create_new(mount.guest("gone")).unwrap();
    fs::remove_file(mount.guest("gone")).unwrap();
    gone.write_all_at(b"text", 0).unwrap();
    gone.set_len(2).unwrap();
    assert_eq!((gone.metadata().unwrap().len(), gone.metadata().unwrap().nlink()), (2, 0));
    fs::create_dir_all(mount.guest("a/b/c")).unwrap();
    fs::remove_dir_all(mount.guest("a")).unwrap();
    assert_eq!(fs::read_dir(mount.host("")).unwrap().count(), 0);
}

#[test]
fn a_tree_is_made_listed_and_removed() {
    let Some(mount) = Mount::new(false) else { return };
    for dir in 0..20 {
        fs::create_dir(mount.guest(&dir.to_string())).unwrap();
        for file in 0..200 {
            fs::write(mount.guest(&format!("{dir}/{file}")), file.to_string()).unwrap();
        }
        assert_eq!(fs::read_dir(mount.guest(&dir.to_string())).unwrap().count(), 200);
    }
    assert_eq!(fs::read_to_string(mount.host("7/42")).unwrap(), "42");
    for dir in 0..20 {
        fs::remove_dir_all(mount.guest(&dir.to_string())).unwrap();
    }
    assert_eq!(fs::read_dir(mount.host("")).unwrap().count(), 0);
}

#[test]
fn a_directory_of_100000_entries_is_listed_whole_while_it_shrinks() {
    const ENTRIES: usize = 100_000;
    let Some(mount) = Mount::new(false) else { return };
    for name in 0..ENTRIES {
        File::create_new(mount.host(&name.to_string())).unwrap();
    }
    let list = || fs::read_dir(mount.guest("")).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(list().collect::<BTreeSet<_>>().len(), ENTRIES);
    for (index, name) in list().enumerate() {
        if index % 10 == 0 {
            fs::remove_file(mount.guest(name.to_str().unwrap())).unwrap();
        }
    }
    assert_eq!((list().count(), fs::read_dir(mount.host("")).unwrap().count()), (90_000, 90_000));
}

#[test]
fn a_read_only_share_is_read_only_whatever_it_is_mounted_as() {
    let Some(mount) = Mount::new(true) else { return };
    fs::write(mount.host("f"), "text").unwrap();
    assert_eq!(fs::read_to_string(mount.guest("f")).unwrap(), "text");
    let error = |result: io::Result<()>| result.unwrap_err().kind();
    let read_only = io::ErrorKind::ReadOnlyFilesystem;
    assert_eq!(error(fs::write(mount.guest("f"), "x")), read_only);
    assert_eq!(error(fs::write(mount.guest("new"), "x")), read_only);
    assert_eq!(error(fs::remove_file(mount.guest("f"))), read_only);
    assert_eq!(error(fs::create_dir(mount.guest("d"))), read_only);
}

#[test]
fn what_is_hidden_is_so_for_the_kernels_own_client() {
    let hidden = vec![b".env".to_vec(), b"vault/*.pem".to_vec()];
    let Some(mount) = Mount::with(false, Rules { hidden, ..Rules::default() }) else { return };
    fs::write(mount.host(".env"), "secret").unwrap();
    fs::create_dir(mount.host("vault")).unwrap();
    fs::write(mount.host("vault/key.pem"), "secret").unwrap();
    fs::write(mount.host("seen"), "text").unwrap();
    let kind = |result: io::Result<()>| result.unwrap_err().kind();
    assert_eq!(kind(fs::read(mount.guest(".env")).map(drop)), io::ErrorKind::NotFound);
    assert_eq!(kind(fs::remove_file(mount.guest(".env"))), io::ErrorKind::NotFound);
    for answer in [
        fs::write(mount.guest(".env"), "mine"),
        fs::rename(mount.guest("seen"), mount.guest(".env")),
        fs::hard_link(mount.guest("seen"), mount.guest("vault/key.pem")),
        fs::create_dir(mount.guest("vault/new.pem")),
        fs::rename(mount.guest("vault"), mount.guest("open")),
    ] {
        assert_eq!(kind(answer), io::ErrorKind::PermissionDenied);
    }
    assert_eq!(fs::read_dir(mount.guest("vault")).unwrap().count(), 0);
    // What the host hides while the guest has it open is lost to it.
    let open = File::options().read(true).write(true).open(mount.guest("seen")).unwrap();
    fs::rename(mount.host("seen"), mount.host(".env")).unwrap();
    assert!(open.write_at(b"x", 0).is_err());
    assert_eq!(fs::read_to_string(mount.host(".env")).unwrap(), "text");
    assert_eq!(fs::read_dir(mount.guest("")).unwrap().count(), 1);
}
