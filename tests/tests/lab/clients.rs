//! Ordinary clients, which know nothing of the gateway, at hosts that have a secret and at others: who gets it, and who does not.

mod answers;

use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tests::hosts::{Hosts, Seen};
use tests::registry::{Image, Registry, file, layer};
use tests::{Home, Test, Vm};

use crate::credentials::{CANARY, PLACEHOLDER, places};

/// Of GitHub and of npm.
const TOKEN: &str = "ghp_canary7b1d3b9c7a2e4d6f8091aabbccddeeff00";
const API: &str = "api.anthropic.com";
const OTHER: &str = "other.example";
const SERVICES: [&str; 4] = ["github.com", "api.github.com", "registry.npmjs.org", "registry.example"];
/// Hosts with a secret whose certificates are not to be believed.
const BAD: [&str; 3] = ["untrusted.example", "expired.example", "misnamed.example"];

const STREAM: &str = include_str!("clients/stream.mjs");
const WEBSOCKET: &str = include_str!("clients/websocket.mjs");
const MESSAGE: &str = include_str!("clients/message.py");

/// The hosts end first: they are a process of the home's, which is to be left clean.
struct Scene {
    hosts: Hosts,
    vm: Vm,
}

impl Scene {
    /// A sandbox with a secret for the API and for the bad hosts, which may reach all of them.
    fn new() -> Result<Self> {
        Self::with_images(None)
    }

    /// The same, where one host has the images of that registry.
    fn with_images(registry: Option<SocketAddr>) -> Result<Self> {
        let home = Home::new()?;
        let names = [&[API, OTHER][..], &SERVICES, &BAD].concat();
        let hosts = Hosts::start(&home, &names, answers::answer(home.path(), registry))?;
        home.coracle(["secret", "set", "anthropic"]).input(CANARY).ok()?;
        let bad = BAD.iter().flat_map(|host| ["--host", host]);
        home.coracle(["secret", "set", "bad"]).args(bad).input(CANARY).ok()?;
        home.write("proj/stream.mjs", STREAM)?;
        home.write("proj/websocket.mjs", WEBSOCKET)?;
        home.write("proj/message.py", MESSAGE)?;
        let vm = Vm { home, name: "vm".into() };
        let allowed = format!("{API},{OTHER},registry.example,{},127.0.0.1", BAD.join(","));
        let run = ["run", "-d", "--name", "vm", "--idle-timeout", "10m", "--cpus", "1", "-m", "1g"];
        hosts.program(&vm.home, "coracle").args(run).args(["--allow", &allowed, "shell", "."]).ok()?;
        Ok(Self { hosts, vm })
    }

    /// What a line of shell prints that has to end well, and what was asked for it.
    fn ask(&self, script: &str) -> Result<(String, Vec<Seen>)> {
        let log = || self.vm.home.coracle(["policy", "log"]).ok().unwrap_or_default();
        let printed = self.vm.command(["sh", "-c", script]).deadline(180).ok().with_context(log)?;
        Ok((printed, self.hosts.seen()))
    }

    /// The same for one that prints `expected`; each request that it makes is to the API, with the secret and nothing else.
    fn is_answered(&self, script: &str, expected: &str) -> Test {
        let (printed, seen) = self.ask(script)?;
        assert_eq!(printed, expected, "{script}");
        ensure!(!seen.is_empty(), "{script}: nothing was asked");
        for request in seen {
            assert_eq!((request.host.as_str(), request.all("x-api-key")), (API, vec![CANARY]), "{request:?}");
            assert!(!format!("{request:?}").contains(PLACEHOLDER), "{request:?}");
            assert!(request.all("authorization").is_empty(), "{request:?}");
        }
        Ok(())
    }

    /// After all that was asked, the secret is in the worker's memory, which a process outside of these namespaces may look into,
    /// and in the file that it is stored in.
    fn is_only_in_the_worker(&self) -> Test {
        let home = &self.vm.home;
        let processes = home.processes();
        let worker = processes.iter().find(|it| it.command.contains(" --worker ")).context("a worker")?;
        let of_worker = format!("memory of {},", worker.pid.as_raw_pid());
        let found = places(home, &processes, home.path(), &[PLACEHOLDER, CANARY])?;
        let (of_secret, of_placeholder): (Vec<_>, Vec<_>) =
            found.iter().partition(|it| it.starts_with(CANARY));
        let of_guest = format!("memory of {},", home.vmm()?.pid.as_raw_pid());
        assert!(of_placeholder.iter().any(|it| it.contains(&of_guest)), "{of_placeholder:?}");
        assert!(of_secret.iter().any(|it| it.contains(&of_worker)), "{of_secret:?}");
        let elsewhere =
            of_secret.iter().find(|it| !it.contains(&of_worker) && !it.ends_with("/secrets.json"));
        assert_eq!(elsewhere, None);
        Ok(())
    }
}

/// No request has the secret in any of its headers.
fn have_no_secret(seen: &[Seen]) {
    assert!(!format!("{seen:?}").contains(CANARY), "{seen:?}");
}

#[test]
fn what_is_lent_goes_the_same_way() -> Test {
    let home = Home::new()?;
    let hosts = Hosts::start(&home, &[API], answers::answer(home.path(), None))?;
    home.write(".config/coracle/agents/lent.toml", "about = 'uses one'\ncredentials = ['anthropic']\n")?;
    home.write("proj/message.py", MESSAGE)?;
    let run = ["run", "--rm", "--cpus", "1", "-m", "512m", "--allow", "127.0.0.1", "lent", ".", "--"];
    let run = hosts.program(&home, "coracle").args(run).args(["python3", "message.py"]);
    assert_eq!(run.env("ANTHROPIC_API_KEY", CANARY).ok()?, "pong\n");
    let seen = hosts.seen();
    assert_eq!(seen.iter().map(|it| it.all("x-api-key")).collect::<Vec<_>>(), [[CANARY]]);
    assert_eq!(places(&home, &[], home.path(), &[CANARY])?, Vec::<String>::new());
    Ok(())
}

/// A private repository of the hosts' GitHub, and a token that opens it; nothing in the sandbox is set up for either.
#[test]
fn git_and_gh_are_logged_in() -> Test {
    let scene = Scene::new()?;
    let home = &scene.vm.home;
    home.coracle(["secret", "set", "github"]).input(TOKEN).ok()?;
    let make = "git init -q --bare ../repositories/me/private.git && git -C ../repositories/me/private.git config http.receivepack true";
    home.program("sh").args(["-c", make]).ok()?;
    let work = "set -e; cd; git clone -q https://github.com/me/private.git 2>&1; cd private
git config user.email me@example.com; git config user.name me
head -c 3000000 /dev/urandom >large; git add .; git commit -qm one; git push -q origin HEAD 2>&1
git clone -q https://github.com/me/private.git ../again; cmp large ../again/large && echo same
gh api user --jq .login";
    let (printed, seen) = scene.ask(work)?;
    assert_eq!(printed, "warning: You appear to have cloned an empty repository.\nsame\nme\n");
    assert!(seen.len() > 5 && !format!("{seen:?}").contains("CoraclePlaceholder"), "{seen:?}");
    // Without the token there is nothing to be had.
    home.coracle(["secret", "rm", "github"]).ok()?;
    let denied = "GIT_TERMINAL_PROMPT=0 git clone https://github.com/me/private.git third 2>&1; echo $?";
    let (printed, _) = scene.ask(denied)?;
    assert!(printed.ends_with("\n128\n"), "{printed}");
    Ok(())
}

fn image() -> Result<Image> {
    let layer = layer(|archive| file(archive, "private", 0o644, b"x"))?;
    Ok(Image { layers: vec![layer], run: json!({}) })
}

/// By secrets for hosts of one's own, and nothing in the sandbox but what the tools insist on.
#[test]
fn npm_and_docker_are_logged_in() -> Test {
    let images = Registry::start()?;
    let scene = Scene::with_images(Some(images.address()))?;
    let home = &scene.vm.home;
    images.push("me/private", "1", &image()?);
    let npm = ["secret", "set", "npm", "--host", "registry.npmjs.org", "--env", "NPM_TOKEN"];
    home.coracle(npm).input(TOKEN).ok()?;
    let registry =
        ["secret", "set", "registry", "--host", "registry.example", "--header", "Authorization: Basic %s"];
    home.coracle(registry).input(answers::BASIC).ok()?;
    let (printed, seen) = scene.ask(
        "npm view @me/private version; npm install --silent @me/private && ls node_modules/@me/private",
    )?;
    assert_eq!(printed, "1.0.0\npackage.json\n");
    assert!(seen.iter().all(|it| it.all("authorization") == [format!("Bearer {TOKEN}")]), "{seen:?}");
    let pull = "docker pull -q registry.example/me/private:1 && docker image inspect -f '{{.Os}}' registry.example/me/private:1";
    let pulled = scene.vm.command(["sh", "-c", pull]).deadline(300).ok()?;
    assert_eq!(pulled, "registry.example/me/private:1\nlinux\n");
    Ok(())
}

#[test]
fn each_kind_of_client_has_its_requests_authorised() -> Test {
    let scene = Scene::new()?;
    scene.is_answered("python3 message.py", "pong\n")?;
    let curl =
        format!("curl -sS -H \"x-api-key: $ANTHROPIC_API_KEY\" -w ' %{{http_version}}\\n' https://{API}/");
    scene.is_answered(&curl, "fine 2\n")?;
    scene.is_answered(&curl.replace("curl", "curl --http1.1"), "fine 1.1\n")?;
    // The second event is sent only when the first was read and told of.
    scene.is_answered("node stream.mjs", "event: first\nevent: second\n")?;
    scene.is_answered("node --experimental-websocket --no-warnings websocket.mjs", "echo: hello\n")?;

    let counted = || {
        let log = scene.vm.home.coracle(["policy", "log"]).ok().unwrap_or_default();
        log.lines().any(|line| line.contains(API) && !line.ends_with(" 0.0 KiB"))
    };
    scene.vm.home.wait_for("what was carried is counted", counted)?;
    scene.is_only_in_the_worker()
}

#[test]
fn nobody_else_gets_it() -> Test {
    let scene = Scene::new()?;
    let key = "-H \"x-api-key: $ANTHROPIC_API_KEY\"";
    // Another host, the same by plain HTTP, and another to which the first sends its client.
    for (url, host) in [(format!("https://{OTHER}/"), OTHER), (format!("http://{API}/"), "")] {
        let (printed, seen) = scene.ask(&format!("curl -sSk {key} {url}"))?;
        assert_eq!(printed, "fine", "{url}");
        assert_eq!(seen.len(), 1, "{seen:?}");
        assert_eq!((seen[0].host.as_str(), seen[0].all("x-api-key")), (host, vec![PLACEHOLDER]));
        have_no_secret(&seen);
    }
    let (printed, seen) = scene.ask(&format!("curl -sSkL {key} https://{API}/redirect"))?;
    assert_eq!(printed, "fine");
    let [first, second] = &seen[..] else { panic!("{seen:?}") };
    assert_eq!((first.host.as_str(), first.all("x-api-key")), (API, vec![CANARY]));
    assert_eq!(second.host, OTHER);
    have_no_secret(&seen[1..]);

    // Plain HTTP where TLS belongs, and a name that TLS does not show, reach nobody.
    for script in [
        format!("curl -sS {key} http://{API}:443/ 2>&1; echo $?"),
        format!("curl -sSk {key} --connect-to {OTHER}:443:{API}:443 https://{OTHER}/ 2>&1; echo $?"),
    ] {
        let (printed, seen) = scene.ask(&script)?;
        assert!(!printed.ends_with("\n0\n") && seen.is_empty(), "{script}: {printed} {seen:?}");
    }
    Ok(())
}

#[test]
fn a_host_that_is_not_believed_gets_nothing_and_the_client_is_told_why() -> Test {
    let scene = Scene::new()?;
    for host in BAD {
        for version in ["--http1.1", "--http2"] {
            let (printed, seen) =
                scene.ask(&format!("curl -sS {version} -w '%{{http_code}}\\n' https://{host}/"))?;
            assert!(
                printed.starts_with(&format!("coracle: TLS with {host}: invalid peer certificate")),
                "{printed}"
            );
            assert!(printed.ends_with("502\n"), "{printed}");
            assert!(seen.is_empty(), "{seen:?}");
        }
    }
    let told = || {
        let log = scene.vm.home.coracle(["policy", "log"]).ok().unwrap_or_default();
        BAD.iter().all(|host| log.lines().any(|line| line.contains(host) && line.contains("certificate")))
    };
    scene.vm.home.wait_for("the log has all of them", told)?;
    Ok(())
}

/// Where its template was built for this user (`make template AGENT=claude`), which takes long and needs the internet.
#[test]
fn claude_code_is_answered() -> Test {
    let user = std::env::var_os("HOME").context("HOME")?;
    let built = Path::new(&user).join(".local/share/coracle");
    if !built.join("templates/claude").exists() {
        println!("skipped: template claude is not built; make template AGENT=claude builds it");
        return Ok(());
    }
    let home = Home::new()?;
    std::fs::create_dir_all(home.path().join(".local/share"))?;
    std::os::unix::fs::symlink(built, home.path().join(".local/share/coracle"))?;
    let hosts = Hosts::start(&home, &[API], answers::answer(home.path(), None))?;
    let run =
        ["run", "--rm", "--cpus", "1", "-m", "2g", "--allow", "127.0.0.1", "claude", ".", "--", "-p", "ping"];
    let run = hosts.program(&home, "coracle").args(run).deadline(500);
    assert_eq!(run.env("ANTHROPIC_API_KEY", CANARY).ok()?, "pong\n");
    let seen = hosts.seen();
    for request in &seen {
        assert_eq!(request.all("x-api-key"), [CANARY], "{request:?}");
        assert!(!format!("{request:?}").contains(PLACEHOLDER), "{request:?}");
    }
    assert!(seen.iter().any(|it| it.line.starts_with("POST /v1/messages ")), "{seen:?}");
    println!("{}", seen.iter().map(|it| format!("{}\n", it.line)).collect::<String>());
    Ok(())
}
