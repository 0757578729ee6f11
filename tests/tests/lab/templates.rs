//! What sandboxes are made from: agents' templates, container images, and sandboxes that were saved.
//! Registries are servers of this host's Python; the images and packages are made here.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::json;
use tests::registry::{Archive, Image, Registry, file, layer};
use tests::{Call, Home, Running, Test};

/// Serves a folder by HTTP at a port of its own, which it writes beside the folder.
const SERVER: &str = include_str!("serve.py");

/// Makes a package of the npm registry and the file of an agent that wants it.
const PACKAGE: &str = include_str!("package.py");

/// What the image of these tests runs: it shows where it is, as whom, and what it sees.
const SHOW: &str = "echo $GREETING; pwd; echo *; cat kept new; echo ../opaque/*; \
     while read k v; do case $k in Uid:|Gid:) echo $k $v;; esac; done </proc/self/status";

fn python(home: &Home, script: &str, args: &[&str]) -> Call {
    home.program("python3").args(["-c", script]).args(args).cwd(home.path())
}

/// The files of the templates' folder, but for the lock.
fn layers(home: &Home) -> Result<usize> {
    let entries = fs::read_dir(home.path().join(".local/share/coracle/layers")).context("layers")?;
    let names = entries.map(|entry| Ok(entry?.file_name())).collect::<Result<Vec<_>>>()?;
    ensure!(!names.iter().any(|name| name.to_string_lossy().starts_with(".new-")), "left: {names:?}");
    Ok(names.iter().filter(|name| name.to_string_lossy().ends_with(".erofs")).count())
}

/// The npm registry that has the package of the test.
fn registry(home: &Home) -> Result<(Running, String)> {
    let folder = home.path().join("npm");
    fs::create_dir_all(&folder)?;
    let mut server = home.program("python3").args(["-u", "-c", SERVER]).cwd(folder).deadline(600).spawn()?;
    server.until("ready")?;
    Ok((server, format!("http://127.0.0.1:{}", home.read("port")?)))
}

#[test]
fn an_agent_is_a_file_and_its_template_is_built_when_it_is_needed() -> Test {
    let home = Home::new()?;
    python(&home, PACKAGE, &["1"]).ok()?;
    let (server, url) = registry(&home)?;
    let tiny = |args: &[&str]| {
        home.coracle(["run", "--rm", "--cpus", "1", "-m", "512m", "tiny", ".", "--"])
            .args(args)
            .env("npm_config_registry", &url)
            .deadline(300)
    };
    assert!(home.coracle(["agents"]).ok()?.contains("tiny     "), "{}", home.coracle(["agents"]).ok()?);
    let first = tiny(&["--more"]).run()?;
    assert_eq!((first.code, first.out()), (0, "tiny 1 --yes --more\nseen\n".into()), "{}", first.err());
    assert!(first.err().contains("building template tiny"), "{}", first.err());
    assert_eq!(layers(&home)?, 1);
    // What is there needs no registry.
    drop(server);
    let second = tiny(&["word"]).run()?;
    assert_eq!((second.code, second.out()), (0, "tiny 1 word\nseen\n".into()), "{}", second.err());
    assert_eq!(second.err(), "");

    // A sandbox keeps what it was made from.
    home.coracle(["run", "-d", "--name", "kept", "--cpus", "1", "-m", "512m", "tiny", "."]).ok()?;
    python(&home, PACKAGE, &["2"]).ok()?;
    let offline = tiny(&[]).run()?;
    assert_eq!(offline.out(), "tiny 1 --yes\nseen\n", "{}", offline.err());
    assert!(offline.err().contains("the older template tiny is used"), "{}", offline.err());
    let (_server, url) = registry(&home)?;
    home.coracle(["template", "build", "tiny"]).env("npm_config_registry", &url).deadline(300).ok()?;
    assert_eq!(tiny(&[]).ok()?, "tiny 2 --yes\nseen\n");
    assert_eq!(home.coracle(["exec", "kept", "tiny"]).ok()?, "tiny 1\nseen\n");
    assert_eq!(layers(&home)?, 2);
    home.coracle(["rm", "-f", "kept"]).ok()?;
    home.coracle(["template", "rm", "tiny"]).ok()?;
    assert_eq!(layers(&home)?, 0);
    Ok(())
}

#[test]
fn a_package_that_is_not_what_its_hash_says_leaves_nothing() -> Test {
    let home = Home::new()?;
    python(&home, PACKAGE, &["1"]).ok()?;
    let archive = home.path().join("npm/@test/tiny/-/tiny-1.tgz");
    let mut bytes = fs::read(&archive)?;
    bytes[20] ^= 1;
    fs::write(&archive, bytes)?;
    let (server, url) = registry(&home)?;
    let done = home.coracle(["run", "--rm", "tiny"]).env("npm_config_registry", &url).run()?;
    assert_eq!(done.code, 125);
    assert!(done.err().contains("its content has the digest"), "{}", done.err());
    assert!(!home.path().join(".local/share/coracle/templates/tiny").exists());
    drop(server);
    assert_eq!(home.left(), Vec::<String>::new());
    Ok(())
}

/// An image with a shell of this host's and little else in it, and these layers on top.
fn image(more: Vec<Vec<u8>>) -> Result<Image> {
    const PROGRAMS: [&str; 4] =
        ["/bin/sh", "/bin/cat", "/lib64/ld-linux-x86-64.so.2", "/lib/x86_64-linux-gnu/libc.so.6"];
    let base = layer(|archive| {
        for program in PROGRAMS {
            file(archive, &program[1..], 0o755, &fs::read(program)?)?;
        }
        file(archive, "srv/old", 0o644, b"old")?;
        file(archive, "srv/kept", 0o644, b"kept\n")?;
        file(archive, "opaque/a", 0o644, b"a")
    })?;
    let next = layer(|archive| {
        file(archive, "srv/.wh.old", 0o644, b"")?;
        file(archive, "srv/new", 0o644, b"new\n")?;
        file(archive, "opaque/.wh..wh..opq", 0o644, b"")?;
        file(archive, "opaque/b", 0o644, b"b")
    })?;
    let run = json!({"Env": ["GREETING=hello"], "Entrypoint": ["/bin/sh", "-c"], "Cmd": [SHOW], "WorkingDir": "/srv", "User": "7:8"});
    Ok(Image { layers: [vec![base, next], more].concat(), run })
}

/// Adds a file whose name no honest program would write.
fn hostile_file(archive: &mut Archive, name: &str) -> std::io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.set_mode(0o644);
    header.set_size(1);
    header.set_cksum();
    archive.append(&header, &b"x"[..])
}

fn load(home: &Home, name: &str, image: &Image) -> Result<Call> {
    home.write("image.tar", image.archive("test/show:1")?)?;
    Ok(home.coracle(["template", "load", "--name", name, "../image.tar"]).deadline(400))
}

/// Whether the image of `kind` runs as its configuration says, and shows these files.
fn shows(home: &Home, kind: &str, files: &str) -> Test {
    let run = home.coracle(["run", "--rm", "--cpus", "1", "-m", "512m", "-t", kind, "shell"]).ok()?;
    let expected = format!("hello\n/srv\n{files}\nkept\nnew\n../opaque/b\nUid: 7 7 7 7\nGid: 8 8 8 8\n");
    assert_eq!(run.replace('\t', " "), expected);
    Ok(())
}

#[test]
fn an_image_runs_as_its_configuration_says() -> Test {
    let home = Home::new()?;
    assert_eq!(load(&home, "plain", &image(Vec::new())?)?.ok()?, "plain\n");
    shows(&home, "plain", "kept new")?;
    // Other arguments for the image's own program leave it where it starts.
    let replaced =
        home.coracle(["run", "--rm", "-t", "plain", "shell", ".", "--", "pwd; echo $PATH"]).ok()?;
    let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    assert_eq!(replaced, format!("/srv\n{path}\n"));
    // A lower layer that is there is not made again.
    let outside = layer(|archive| {
        hostile_file(archive, "../../../../../../srv/outside")?;
        hostile_file(archive, "/srv/absolute")
    })?;
    let more = load(&home, "outside", &image(vec![outside])?)?.run()?;
    assert_eq!(more.code, 0, "{}", more.err());
    assert!(more.err().contains("layer 3 of 3") && !more.err().contains("layer 1 of 3"), "{}", more.err());
    // What tries to get out of the image stays in it.
    shows(&home, "outside", "absolute kept new outside")?;
    assert!(!Path::new("/srv/outside").exists() && !Path::new("/srv/absolute").exists());
    assert_eq!(layers(&home)?, 3);
    let listed = home.coracle(["template", "ls", "-q"]).ok()?;
    assert_eq!(listed, "outside\nplain\nshell\n");
    home.coracle(["template", "rm", "plain", "outside"]).ok()?;
    assert_eq!(layers(&home)?, 0);
    Ok(())
}

#[test]
fn an_image_of_a_registry_is_pulled_when_it_is_needed() -> Test {
    let (home, registry) = (Home::new()?, Registry::start()?);
    let (tag, digest) = registry.push("test/show", "1", &image(Vec::new())?);
    let run = |name: &str, pull: &str| {
        home.coracle(["run", "--rm", "--cpus", "1", "-m", "512m", "--pull", pull, "-t", name, "shell"])
            .deadline(400)
    };
    let never = run(&tag, "never").run()?;
    assert_eq!((never.code, registry.asked().len()), (125, 0), "{}", never.err());
    assert!(run(&tag, "missing").ok()?.starts_with("hello\n/srv\nkept new\n"));
    assert_eq!(registry.asked().len(), 4, "manifest, configuration and two layers");
    assert!(run(&tag, "missing").ok()?.starts_with("hello"));
    assert!(run(&tag, "never").ok()?.starts_with("hello"));
    assert_eq!(registry.asked(), Vec::<String>::new());
    // The same by its digest is another template of the same layers, none of which is fetched or made again.
    assert!(run(&digest, "always").ok()?.starts_with("hello"));
    assert_eq!(registry.asked().len(), 1, "the manifest");
    assert_eq!(layers(&home)?, 2);
    let typing_error = run("shel", "always").run()?;
    assert!(
        typing_error.err().contains("the name of an image begins with its registry"),
        "{}",
        typing_error.err()
    );
    Ok(())
}

#[test]
fn an_image_of_too_many_layers_is_made_one() -> Test {
    let home = Home::new()?;
    let numbered = |number: i32| layer(|archive| file(archive, &format!("srv/{number}"), 0o644, b"x"));
    load(&home, "many", &image((0..20).map(numbered).collect::<Result<_>>()?)?)?.ok()?;
    assert_eq!(layers(&home)?, 1);
    let mut numbers: Vec<String> = (0..20).map(|number| number.to_string()).collect();
    numbers.sort();
    shows(&home, "many", &format!("{} kept new", numbers.join(" ")))
}

#[test]
fn a_layer_that_is_cut_off_leaves_nothing() -> Test {
    let home = Home::new()?;
    let mut cut = image(Vec::new())?;
    cut.layers[0].truncate(100_000);
    let done = load(&home, "cut", &cut)?.run()?;
    assert_eq!(done.code, 125, "{}", done.err());
    assert!(done.err().contains("it cannot be unpacked"), "{}", done.err());
    assert_eq!(layers(&home)?, 0);
    assert!(!home.coracle(["template", "ls", "-q"]).ok()?.contains("cut"));
    home.wait_for("the builder's end", || home.left().is_empty())
}

#[test]
fn a_layer_may_be_compressed_by_zstd() -> Test {
    let (home, registry) = (Home::new()?, Registry::start()?);
    let top = layer(|archive| file(archive, "srv/packed", 0o644, &[b'x'; 1 << 20]))?;
    fs::write(home.workspace().join("top.tar"), top)?;
    let run = ["run", "--rm", "--cpus", "1", "-m", "512m"];
    home.coracle(run).args(["shell", ".", "--", "zstd", "-q", "top.tar"]).ok()?;
    let packed = fs::read(home.workspace().join("top.tar.zst"))?;
    assert!(packed.len() < 1 << 16, "{} bytes", packed.len());
    let (tag, _) = registry.push("test/packed", "1", &image(vec![packed])?);
    let shown = home.coracle(run).args(["-t", &tag, "shell"]).deadline(400).ok()?;
    assert!(shown.starts_with("hello\n/srv\nkept new packed\n"), "{shown}");
    Ok(())
}

/// The first is killed in the middle of a layer. Then two commands want the same image at once.
#[test]
fn a_load_that_is_killed_leaves_nothing_to_those_that_follow() -> Test {
    let home = Home::new()?;
    let killed = load(&home, "killed", &image(Vec::new())?)?.spawn()?;
    let folder = home.path().join(".local/share/coracle/layers");
    let begun = || fs::read_dir(&folder).is_ok_and(|mut entries| entries.any(|it| is_draft(it.ok())));
    home.wait_for("a layer is begun", begun)?;
    killed.signal(Signal::KILL)?;
    assert_eq!(killed.wait()?.code, -9);
    let load = |name| home.coracle(["template", "load", "--name", name, "../image.tar"]).deadline(400);
    let (one, two) = (load("one").spawn()?, load("two").spawn()?);
    assert_eq!((one.ok()?, two.ok()?), ("one\n".into(), "two\n".into()));
    assert_eq!(layers(&home)?, 2);
    assert_eq!(home.coracle(["template", "ls", "-q"]).ok()?, "one\nshell\ntwo\n");
    assert!(!home.path().join("state/coracle-builder").exists());
    home.is_clean()
}

fn is_draft(entry: Option<fs::DirEntry>) -> bool {
    entry.is_some_and(|entry| entry.file_name().to_string_lossy().starts_with(".new-"))
}

#[test]
fn what_is_installed_in_a_sandbox_can_be_saved() -> Test {
    let home = Home::new()?;
    home.coracle(["run", "-d", "--name", "first", "--cpus", "1", "-m", "512m", "shell", "."]).ok()?;
    let change =
        "echo made >~/made; sudo rm /etc/motd /usr/bin/jq; sudo mkdir /opt/new; echo w >in-workspace";
    home.coracle(["exec", "first", "bash", "-c", change]).ok()?;
    let busy = home.coracle(["template", "save", "first", "mine"]).run()?;
    assert_eq!(busy.code, 125);
    assert!(
        busy.err().contains("sandbox first is running; stop it first: coracle stop first"),
        "{}",
        busy.err()
    );
    home.coracle(["stop", "first"]).ok()?;
    home.coracle(["template", "save", "first", "mine"]).deadline(300).ok()?;
    home.coracle(["rm", "first"]).ok()?;
    let look =
        "cat ~/made; ls -d /opt/new; ls /usr/bin/jq /etc/motd 2>&1 | grep -c 'No such'; ls ~; hostname";
    let run =
        ["run", "--rm", "--name", "second", "-t", "mine", "shell", "../other", "--", "bash", "-c", look];
    fs::create_dir(home.path().join("other"))?;
    assert_eq!(home.coracle(run).ok()?, "made\n/opt/new\n2\nmade\nsecond\n");
    Ok(())
}
