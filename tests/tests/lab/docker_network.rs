//! Containers of the sandbox's own Docker: they have its network and its policy without being told of either, and no secrets.

use std::net::TcpListener;

use anyhow::Result;
use tests::{Call, Home, Running, Test, Vm};

/// For whatever waits for the daemon to start, in a guest that runs at a hundredth of its speed.
const PATIENCE_S: u64 = 240;
const IMAGE: &str = include_str!("docker/image.py");
const REGISTRY: &str = include_str!("docker/registry.py");
const REFUSED: &str = include_str!("docker/refused.py");
const TLS: &str = include_str!("docker/tls.py");
const CANARY: &str = "canary-5f1d3b9c7a2e4d6f8091";

/// An image with a shell and curl, which downloads something while it is built.
const DOCKERFILE: &str = "FROM scratch
ADD files.tar /
ENV PATH=/usr/bin:/bin
ARG URL
RUN curl -fsS $URL/note >/note
CMD [\"cat\", \"/note\"]
";
const BUILD: &str = "python3 image.py files curl getent grep >files.tar && docker build -q -t net:1 --build-arg URL=$0 . >/dev/null && \
    docker run --rm net:1";

/// By name, by an address that stands for none, and by names that are refused: codes of getent and curl.
const ASK: &str = "grep -h ^nameserver /etc/resolv.conf; getent hosts host.coracle.internal; curl -fsS $0/note; curl -sS \
    http://denied.example/; echo $?; curl -sS http://1.1.1.1/ 2>/dev/null; \
    case $? in 55 | 56) echo reset ;; esac; getent hosts denied.example; echo $?";

/// One container asks another by its name, and then the host.
const COMPOSE: &str = "services:
  server:
    image: net:1
    command: [python3, -m, http.server, '80', --bind, 0.0.0.0, --directory, /proj]
    volumes: ['/usr:/usr:ro', '.:/proj:ro']
    ports: ['8080:80']
  client:
    image: net:1
    command: [sh, -c, 'until curl -fs http://server/name; do sleep 1; done; curl -fsS URL/note']
";

/// A port of this machine's on which nobody listens yet.
fn port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// A server of this machine's, as long as the test takes.
fn serve(home: &Home, script: &str, args: &[&str]) -> Result<Running> {
    let mut server =
        home.program("python3").args(["-c", script]).args(args).deadline(4 * PATIENCE_S).spawn()?;
    server.until("ready")?;
    Ok(server)
}

/// A line of shell, whose $0 is `argument`.
fn slow(vm: &Vm, script: &str, argument: &str) -> Call {
    vm.command(["sh", "-c", script, argument]).deadline(PATIENCE_S)
}

#[test]
fn containers_have_the_network_of_their_sandbox() -> Test {
    let vm = Vm { home: Home::new()?, name: "vm".into() };
    let port = port()?;
    let url = format!("http://host.coracle.internal:{port}");
    for (name, text) in [("image.py", IMAGE), ("refused.py", REFUSED), ("Dockerfile", DOCKERFILE)] {
        vm.home.write(&format!("proj/{name}"), text)?;
    }
    vm.home.write("proj/compose.yaml", COMPOSE.replace("URL", &url))?;
    vm.home.write("proj/name", "from the other container\n")?;
    vm.home.write("www/note", "from the host\n")?;
    let script = "import http.server, os, sys; os.chdir('../www'); print('ready', flush=True); \
        http.server.test(http.server.SimpleHTTPRequestHandler, port=int(sys.argv[1]), bind='127.0.0.1')";
    let server = serve(&vm.home, script, &[&port.to_string()])?;
    vm.start(["--cpus", "1", "-m", "1g", "--allow", &format!("localhost:{port}")])?;

    assert_eq!(slow(&vm, BUILD, &url).ok()?, "from the host\n");
    let seen = "198.18.0.2      host.coracle.internal\nfrom the host\n6\nreset\n2\n";
    let ask = |flags: &str| slow(&vm, &format!("docker run --rm {flags} net:1 sh -c '{ASK}' $0"), &url).ok();
    assert_eq!(ask("")?, format!("nameserver 192.0.2.1\n{seen}"));
    vm.exec("docker network create other")?;
    assert_eq!(ask("--network other --dns 8.8.8.8")?, format!("nameserver 127.0.0.11\n{seen}"));

    for network in ["bridge", "other"] {
        let run = "docker run --rm --network $0 -v /usr:/usr:ro -v $PWD:/proj net:1 python3 /proj/refused.py";
        assert_eq!(slow(&vm, run, network).ok()?, "", "{network}");
    }

    let up = "docker compose up -d 2>/dev/null; docker compose wait client >/dev/null; docker logs $(docker compose ps -aq client); \
        curl -fsS http://127.0.0.1:8080/name; curl -fsS http://$(hostname):8080/name; docker run --rm net:1 curl -fsS \
        http://172.17.0.1:8080/name";
    let other = "from the other container\n";
    assert_eq!(slow(&vm, up, "").ok()?, format!("{other}from the host\n{other}{other}{other}"));

    // Nobody was asked for what stays inside, and what was refused is told.
    let log = vm.home.coracle(["policy", "log"]).ok()?;
    assert!(!log.contains("172.1") && !log.contains(" server "), "{log}");
    assert!(log.contains("denied.example") && log.contains("169.254.169.254"), "{log}");
    drop(server);
    Ok(())
}

#[test]
fn a_registry_on_the_host_serves_docker_and_a_secret_stays_out_of_containers() -> Test {
    let vm = Vm { home: Home::new()?, name: "vm".into() };
    let (registry, host) = (port()?.to_string(), port()?.to_string());
    for (name, text) in [("image.py", IMAGE), ("Dockerfile", DOCKERFILE)] {
        vm.home.write(&format!("proj/{name}"), text)?;
    }
    let registry_runs = serve(&vm.home, REGISTRY, &[&registry])?;
    let name = format!("host.coracle.internal:{host}");
    vm.home.coracle(["secret", "set", "mine", "--host", &name]).input(CANARY).ok()?;
    let run = ["run", "-d", "--name", "vm", "--idle-timeout", "10m", "--cpus", "1", "-m", "1g"];
    let allow = [&registry, &host].map(|port| format!("--allow=localhost:{port}"));
    let run = vm.home.coracle(run).args(allow).args(["shell", "."]);
    run.env("SSL_CERT_FILE", vm.home.workspace().join("host.pem")).ok()?;

    let make = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=host -addext basicConstraints=critical,CA:FALSE -addext \
        subjectAltName=DNS:host.coracle.internal -keyout key.pem -out cert.pem 2>/dev/null && cat cert.pem key.pem >host.pem";
    vm.exec(make)?;
    let host_runs = serve(&vm.home, TLS, &[&host, "host.pem", CANARY])?;
    let url = format!("https://host.coracle.internal:{host}");
    let curl = "curl -fsS -H 'Authorization: own' $0";
    assert_eq!(slow(&vm, curl, &url).ok()?, "the secret\n");
    // The same in a build and in a container, which trust nobody but the host.
    vm.home.write(
        "proj/Dockerfile",
        DOCKERFILE.replace("curl -fsS $URL/note", "curl -fsS --cacert /cert.pem $URL"),
    )?;
    let build = "tar cf cert.tar cert.pem && sed -i 's/^ENV/ADD cert.tar \\/\\nENV/' Dockerfile";
    vm.exec(build)?;
    assert_eq!(slow(&vm, BUILD, &url).ok()?, "None\n");
    let curl = "docker run --rm net:1 curl -fsS --cacert /cert.pem -H 'Authorization: own' $0";
    assert_eq!(slow(&vm, curl, &url).ok()?, "own\n");

    let image = format!("host.coracle.internal:{registry}/built:1");
    let there_and_back = "docker tag net:1 $0 && docker push -q $0 && docker image rm $0 >/dev/null && docker pull -q $0 && \
        printf 'FROM %s\\nRUN cat /note >/seen\\n' $0 >Dockerfile && docker build -q . >/dev/null && echo built";
    assert_eq!(slow(&vm, there_and_back, &image).ok()?, format!("{image}\n{image}\nbuilt\n"));
    drop((registry_runs, host_runs));
    Ok(())
}
