//! What may be a workspace.

use std::ffi::OsString;
use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;

struct Fixture(tempfile::TempDir);

impl Fixture {
    fn new() -> Self {
        let fixture = Self(tempfile::tempdir().unwrap());
        for folder in
            ["proj/sub", "docs", "docs:ro", "a b,=\"$()", "state/coracle/sandboxes", "-dash", "new\nline"]
        {
            fs::create_dir_all(fixture.path(folder)).unwrap();
        }
        fs::create_dir(fixture.0.path().join(OsStr::from_bytes(b"\xff\xfe"))).unwrap();
        fs::write(fixture.path("file"), "").unwrap();
        symlink(fixture.path("proj"), fixture.path("link")).unwrap();
        symlink("loop", fixture.path("loop")).unwrap();
        fixture
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Resolves names in the fixture (or absolute paths).
    fn resolve(&self, names: &[&str]) -> Result<Vec<Workspace>> {
        let typed: Vec<OsString> = names
            .iter()
            .map(|name| if name.is_empty() { OsString::new() } else { self.path(name).into_os_string() })
            .collect();
        let typed: Vec<&OsStr> = typed.iter().map(OsString::as_os_str).collect();
        resolve(&typed, 8, &[self.path("state/coracle")])
    }

    fn error(&self, names: &[&str]) -> String {
        let error = self.resolve(names).expect_err(&format!("{names:?}"));
        format!("{error:#}").replace(self.0.path().to_str().unwrap(), "TMP")
    }
}

#[test]
fn good_ones_are_canonical() {
    let fixture = Fixture::new();
    for (typed, path) in [
        ("proj", "proj"),
        ("proj/", "proj"),
        ("proj//sub/..", "proj"),
        ("link", "proj"),
        ("proj/.", "proj"),
        ("docs:ro/", "docs:ro"),
        ("a b,=\"$()", "a b,=\"$()"),
        ("-dash", "-dash"),
        ("new\nline", "new\nline"),
        ("docs:rw", "docs"),
    ] {
        let workspaces = fixture.resolve(&[typed]).unwrap();
        let expected =
            Workspace { path: fixture.path(path), read_only: false, file: false, worktrees: Vec::new() };
        assert_eq!(workspaces, [expected], "{typed:?}");
    }
    let raw = fixture.0.path().join(OsStr::from_bytes(b"\xff\xfe"));
    let workspaces = resolve(&[raw.as_os_str()], 8, &[]).unwrap();
    let json = serde_json::to_string(&workspaces[0]).unwrap();
    assert_eq!(serde_json::from_str::<Workspace>(&json).unwrap(), workspaces[0]);
    assert!(workspaces[0].show().ends_with("/\\xff\\xfe"));
}

#[test]
fn the_extra_ones_may_be_read_only_or_files() {
    let fixture = Fixture::new();
    let workspaces = fixture.resolve(&["proj", "docs:ro", "file:ro"]).unwrap();
    assert_eq!(
        workspaces.iter().map(|it| (it.read_only, it.file)).collect::<Vec<_>>(),
        [(false, false), (true, false), (true, true)]
    );
    fixture.resolve(&["proj", "proj/sub"]).unwrap();
}

#[test]
fn bad_ones_are_refused_with_the_reason() {
    let fixture = Fixture::new();
    let cases: [(&[&str], &str); 25] = [
        (&[""], "is empty"),
        (&["missing"], "does not exist"),
        (&["file"], "is a file; the first workspace"),
        (&["file/x"], "goes through a file"),
        (&["loop"], "goes round in circles"),
        (&["/"], "belongs to the system"),
        (&["/proc"], "belongs to the system"),
        (&["/proc/self"], "belongs to the system"),
        (&["/sys"], "belongs to the system"),
        (&["/dev"], "belongs to the system"),
        (&["/dev/shm"], "belongs to the system"),
        (&["/etc"], "belongs to the system"),
        (&["/usr"], "belongs to the system"),
        (&["/bin"], "belongs to the system"),
        (&["/usr/lib"], "belongs to the system"),
        (&["/tmp"], "belongs to the system"),
        (&["proj", "/etc/ssl:ro"], "belongs to the system"),
        (&["state"], "holds Coracle's own files"),
        (&["state/coracle/sandboxes"], "holds Coracle's own files"),
        (&["proj", "state:ro"], "holds Coracle's own files"),
        (&["proj", "/dev/null:ro"], "is neither a folder nor a file"),
        (&["proj", "proj"], "is given twice"),
        (&["proj", "link:ro"], "is given twice"),
        (&["proj", "proj/sub:ro"], "cannot be read-only: it is inside"),
        (&["proj/sub", "docs", "docs", "proj"], "is given twice"),
    ];
    for (typed, reason) in cases {
        let error = fixture.error(typed);
        assert!(error.contains(reason), "{typed:?}: {error}");
    }
    let long = format!("{}/x", "./".repeat(2048));
    assert!(fixture.error(&[&long]).contains("bytes long; Linux allows 4095"));
    assert!(fixture.error(&["proj"; 9]).contains("too many"));
}

#[test]
fn a_folder_that_cannot_be_read_is_refused() {
    if rustix::process::geteuid().is_root() {
        eprintln!("skipped: root may read everything");
        return;
    }
    let fixture = Fixture::new();
    fs::set_permissions(fixture.path("proj"), fs::Permissions::from_mode(0o600)).unwrap();
    assert!(fixture.error(&["proj"]).contains("you may not read it"));
}
