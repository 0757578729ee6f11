//! Which repositories are believed to belong to a worktree, made by the real Git.

use std::os::unix::fs::symlink;
use std::process::Command;

use super::*;

/// A repository `main` with a linked worktree `tree`, and a stranger's repository beside it.
struct Fixture(tempfile::TempDir);

impl Fixture {
    /// `None` without Git.
    fn new() -> Option<Self> {
        let fixture = Self(tempfile::tempdir().unwrap());
        fixture.git(&["init", "-q", "main"])?;
        fixture.git(&[
            "-C",
            "main",
            "-c",
            "user.name=a",
            "-c",
            "user.email=a@b",
            "commit",
            "-q",
            "--allow-empty",
            "-m",
            "x",
        ])?;
        fixture.git(&["-C", "main", "worktree", "add", "-q", "../tree"])?;
        Some(fixture)
    }

    fn git(&self, args: &[&str]) -> Option<()> {
        let Ok(output) = Command::new("git").current_dir(self.0.path()).args(args).output() else {
            eprintln!("skipped: there is no git");
            return None;
        };
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Some(())
    }

    fn path(&self, name: &str) -> PathBuf {
        fs::canonicalize(self.0.path()).unwrap().join(name)
    }

    fn workspace(&self, name: &str) -> Workspace {
        Workspace { path: self.path(name), read_only: false, file: false, worktrees: Vec::new() }
    }

    fn linked(&self, name: &str) -> Result<Option<Linked>> {
        linked(&self.path(name), &[self.path("private")])
    }

    fn refused(&self, text: &str) -> String {
        fs::write(self.path("tree/.git"), text).unwrap();
        format!("{:#}", self.linked("tree").expect_err(text))
    }
}

#[test]
fn a_linked_worktree_shows_what_git_needs_of_its_repository() {
    let Some(fixture) = Fixture::new() else { return };
    let mut workspaces = vec![fixture.workspace("tree")];
    let notes = add_repositories(&mut workspaces, &[]).unwrap();
    assert_eq!(notes.len(), 1);
    assert!(notes[0].contains("main/.git is shown too"), "{notes:?}");
    let added = &workspaces[1];
    assert_eq!((added.path.clone(), added.read_only), (fixture.path("main/.git"), true));
    assert_eq!(added.worktrees, ["tree"]);
    // Asked again, as when another command has taken the name.
    assert!(add_repositories(&mut workspaces, &[]).unwrap().is_empty());
    assert_eq!(workspaces.len(), 2);
    // A second worktree has the same repository.
    fixture.git(&["-C", "main", "worktree", "add", "-q", "../second"]).unwrap();
    let mut workspaces = vec![fixture.workspace("tree"), fixture.workspace("second")];
    add_repositories(&mut workspaces, &[]).unwrap();
    assert_eq!(
        (workspaces.len(), workspaces[2].worktrees.clone()),
        (3, vec!["second".into(), "tree".into()])
    );
}

#[test]
fn what_is_shown_anyway_or_is_no_worktree_adds_nothing() {
    let Some(fixture) = Fixture::new() else { return };
    let mut both = vec![fixture.workspace("tree"), fixture.workspace("main")];
    assert!(add_repositories(&mut both, &[]).unwrap().is_empty());
    assert_eq!(both.len(), 2);
    fs::create_dir(fixture.path("plain")).unwrap();
    for name in ["main", "plain"] {
        assert_eq!(fixture.linked(name).unwrap(), None, "{name}");
    }
    for text in ["", "nonsense", "gitdir: ../main/.git/modules/x", "gitdir: /etc"] {
        fs::write(fixture.path("plain/.git"), text).unwrap();
        assert_eq!(fixture.linked("plain").unwrap(), None, "{text}");
    }
}

#[test]
fn a_forged_worktree_is_not_believed() {
    let Some(fixture) = Fixture::new() else { return };
    let dir = |name: &str| fixture.path(name).display().to_string();
    fixture.git(&["init", "-q", "other"]).unwrap();
    fixture.git(&["-C", "main", "worktree", "add", "-q", "../second"]).unwrap();
    fs::create_dir_all(fixture.path("keys/worktrees/x")).unwrap();
    let elsewhere = fixture.refused(&format!("gitdir: {}\n", dir("main/.git/worktrees/second")));
    assert!(elsewhere.contains("has its worktree elsewhere"), "{elsewhere}");
    let keys = fixture.refused(&format!("gitdir: {}", dir("keys/worktrees/x")));
    assert!(keys.contains("is not of that repository"), "{keys}");
    // With all but the right place in a real repository.
    for (file, text) in [("commondir", "../..".to_owned()), ("gitdir", dir("tree/.git"))] {
        fs::write(fixture.path("keys/worktrees/x").join(file), text).unwrap();
    }
    let keys = fixture.refused(&format!("gitdir: {}", dir("keys/worktrees/x")));
    assert!(keys.contains("is not in a repository"), "{keys}");
    let missing = fixture.refused("gitdir: /nowhere/worktrees/x");
    assert!(missing.contains("is not there"), "{missing}");
    // A link leads to where it leads, and that has to be in order.
    symlink(fixture.path("main/.git/worktrees/second"), fixture.path("keys/worktrees/l")).unwrap();
    let link = fixture.refused(&format!("gitdir: {}", dir("keys/worktrees/l")));
    assert!(link.contains("has its worktree elsewhere"), "{link}");
    let mut workspaces = vec![fixture.workspace("tree")];
    let notes = add_repositories(&mut workspaces, &[]).unwrap();
    assert!(notes[0].contains("is not believed") && workspaces.len() == 1, "{notes:?}");
}

#[test]
fn a_repository_with_worktrees_inside_or_in_a_closed_place_is_left_alone() {
    let Some(fixture) = Fixture::new() else { return };
    fixture.git(&["clone", "-q", "--bare", "main", "bare"]).unwrap();
    fixture.git(&["-C", "bare", "worktree", "add", "-q", "../outside", "-b", "o"]).unwrap();
    assert_eq!(fixture.linked("outside").unwrap().unwrap().common, fixture.path("bare"));
    fixture.git(&["-C", "bare", "worktree", "add", "-q", "inside", "-b", "i"]).unwrap();
    let inside = fixture.linked("outside").unwrap_err();
    assert!(inside.to_string().contains("inside of the repository"), "{inside}");
    let private = linked(&fixture.path("tree"), &[fixture.path("main")]).unwrap_err();
    assert!(private.to_string().contains("Coracle's own files"), "{private}");
}

#[test]
fn the_rules_keep_what_runs_programs() {
    let rules = rules(&["tree".into()]);
    let has = |list: &[Vec<u8>], path: &str| list.iter().any(|it| it == path.as_bytes());
    assert!(has(&rules.writable, "/worktrees/tree/*") && has(&rules.fixed, "/worktrees/tree/commondir"));
    assert!(vmm::virtio::fs::Patterns::new(&rules.writable).is_ok());
    let most = vec!["name".to_owned(); WORKTREES_MAX];
    assert!(vmm::virtio::fs::Patterns::new(&super::rules(&most).fixed).is_ok(), "they fit");
}
