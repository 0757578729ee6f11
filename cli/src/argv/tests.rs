//! What may be typed, and what argh and the sandbox get of it.

use std::os::unix::ffi::OsStringExt;

use super::*;
use expect_test::{Expect, expect};

fn line(typed: &str) -> Result<Line, String> {
    parse(typed.split_whitespace().map(OsString::from).collect())
}

/// Words and tail of a command line, or what is wrong with it.
fn sorted(typed: &str) -> String {
    match line(typed) {
        Err(error) => format!("error: {error}"),
        Ok(line) => {
            let tail = line.tail.map(|tail| format!(" | {}", tail.join(OsStr::new(" ")).to_string_lossy()));
            format!("{}{}", line.words.join(" "), tail.unwrap_or_default())
        }
    }
}

fn check(typed: &[&str], expected: &Expect) {
    let lines: Vec<_> = typed.iter().map(|typed| format!("{typed:42} => {}\n", sorted(typed))).collect();
    expected.assert_eq(&lines.concat());
}

#[test]
fn dockers_spellings_become_arghs() {
    check(
        &[
            "run shell",
            "run --rm shell . -- make -j4 -- x",
            "run shell --",
            "run --name=x shell",
            "run --name= shell",
            "run --tty shell",
            "run -dt docker.io/library/debian shell",
            "run -m4g -eA=1 -e=B=2 -e C=3 shell",
            "run -dm 4g shell",
            "run shell --cpus 2 a b:ro",
            "run --rm=false --detach=true shell",
            "run --timings shell",
            "run --timings=json shell",
            "run --env=A=B=C shell",
            "run shell -v",
            "exec box ls -la -- x",
            "exec -it box bash",
            "template ls -q",
            "template build --download-only claude",
            "template rm a b",
            "exec box -- ls",
            "exec -- box ls",
            "exec -e A=1 box -v",
            "exec box",
            "rm -f a b",
            "rm -- -f",
            "stop -",
            "ls -q",
        ],
        &expect![[r#"
            run shell                                  => run -- shell
            run --rm shell . -- make -j4 -- x          => run --rm -- shell . | make -j4 -- x
            run shell --                               => run -- shell | 
            run --name=x shell                         => run --name x -- shell
            run --name= shell                          => run --name  -- shell
            run --tty shell                            => run --tty -- shell
            run -dt docker.io/library/debian shell     => run --detach --template docker.io/library/debian -- shell
            run -m4g -eA=1 -e=B=2 -e C=3 shell         => run --memory 4g --env A=1 --env B=2 --env C=3 -- shell
            run -dm 4g shell                           => run --detach --memory 4g -- shell
            run shell --cpus 2 a b:ro                  => run --cpus 2 -- shell a b:ro
            run --rm=false --detach=true shell         => run --detach -- shell
            run --timings shell                        => run --timings text -- shell
            run --timings=json shell                   => run --timings json -- shell
            run --env=A=B=C shell                      => run --env A=B=C -- shell
            run shell -v                               => run -- shell
            exec box ls -la -- x                       => exec -- box | ls -la -- x
            exec -it box bash                          => exec --interactive --tty -- box | bash
            template ls -q                             => template ls --quiet --
            template build --download-only claude      => template build --download-only -- claude
            template rm a b                            => template rm -- a b
            exec box -- ls                             => exec -- box | ls
            exec -- box ls                             => exec -- box | ls
            exec -e A=1 box -v                         => exec --env A=1 -- box | -v
            exec box                                   => exec -- box | 
            rm -f a b                                  => rm --force -- a b
            rm -- -f                                   => rm -- -f
            stop -                                     => stop -- -
            ls -q                                      => ls --quiet --
        "#]],
    );
}

#[test]
fn help_and_version_from_anywhere() {
    check(
        &[
            "",
            "help",
            "-h",
            "--help",
            "help run",
            "run --help",
            "run shell . -h",
            "run --name -h shell",
            "exec -h",
            "exec box -h",
            "run shell -- -h",
            "help -h",
            "template --help",
            "template rm -h",
            "help template",
            "--version",
            "-V",
            "version",
            "-v -v ls",
        ],
        &expect![[r#"
                                                       => --help
            help                                       => --help
            -h                                         => --help
            --help                                     => --help
            help run                                   => run --help
            run --help                                 => run --help
            run shell . -h                             => run --help
            run --name -h shell                        => run --name -h -- shell
            exec -h                                    => exec --help
            exec box -h                                => exec -- box | -h
            run shell -- -h                            => run -- shell | -h
            help -h                                    => --help
            template --help                            => template --help
            template rm -h                             => template rm --help
            help template                              => template --help
            --version                                  => version
            -V                                         => version
            version                                    => version --
            -v -v ls                                   => ls --
        "#]],
    );
}

#[test]
fn mistakes_are_told_in_one_line() {
    check(
        &[
            "rnu",
            "--frob",
            "help frob",
            "frobnicate",
            "run --nmae x shell",
            "run --memry=4g shell",
            "run -x shell",
            "run -itx shell",
            "run --name",
            "run -m",
            "run --name a --name b shell",
            "run -m 1g --memory=2g shell",
            "run --rm=maybe shell",
            "run -d=maybe shell",
            "template",
            "template frob",
            "template bulid claude",
            "template ls --frob",
            "ls -a",
            "ls -qv",
            "-",
        ],
        &expect![[r#"
            rnu                                        => error: unknown command "rnu"; did you mean run? coracle help lists the commands
            --frob                                     => error: unknown flag "--frob"; coracle help lists the commands
            help frob                                  => error: unknown command "frob"; coracle help lists the commands
            frobnicate                                 => error: unknown command "frobnicate"; coracle help lists the commands
            run --nmae x shell                         => error: unknown flag "--nmae"; did you mean --name? coracle run --help lists them
            run --memry=4g shell                       => error: unknown flag "--memry"; did you mean --memory? coracle run --help lists them
            run -x shell                               => error: unknown flag "-x"; coracle run --help lists them
            run -itx shell                             => error: unknown flag "-i"; coracle run --help lists them
            run --name                                 => error: --name needs a value: --name NAME; see coracle run --help
            run -m                                     => error: -m needs a value: -m SIZE; see coracle run --help
            run --name a --name b shell                => error: --name is given twice; keep one
            run -m 1g --memory=2g shell                => error: --memory is given twice; keep one
            run --rm=maybe shell                       => error: --rm takes no value, or true or false, not "maybe"
            run -d=maybe shell                         => error: -d takes no value, or true or false, not "maybe"
            template                                   => error: template needs one of: build, pull, load, save, ls, inspect, rm; see coracle template --help
            template frob                              => error: template has no "frob"; coracle template --help lists what it has
            template bulid claude                      => error: template has no "bulid"; did you mean build? coracle template --help lists what it has
            template ls --frob                         => error: unknown flag "--frob"; coracle template ls --help lists them
            ls -a                                      => error: unknown flag "-a"; coracle ls --help lists them
            ls -qv                                     => error: unknown flag "-v"; coracle ls --help lists them
            -                                          => error: unknown flag "-"; coracle help lists the commands
        "#]],
    );
}

#[test]
fn bytes_that_are_no_text_are_carried() {
    let bytes = || OsString::from_vec(b"a\xff".to_vec());
    let args = |words: &[&str]| words.iter().map(OsString::from).chain([bytes()]).collect::<Vec<_>>();
    let line = parse(args(&["run", "shell"])).unwrap();
    assert_eq!(decode(&line.words[3]), bytes());
    let line = parse(args(&["run", "shell", "--"])).unwrap();
    assert_eq!(line.tail.unwrap(), [bytes()]);
    let line = parse(args(&["exec", "box"])).unwrap();
    assert_eq!(line.tail.unwrap(), [bytes()]);
    assert_eq!(
        parse(vec![bytes()]).unwrap_err(),
        r#"unknown command "a\xff"; coracle help lists the commands"#
    );
    let flag = OsString::from_vec(b"--\xff=1".to_vec());
    let error = parse(vec!["run".into(), flag]).unwrap_err();
    assert_eq!(error, r#"unknown flag "--\xff"; coracle run --help lists them"#);
}

#[test]
fn a_huge_argument_makes_no_huge_message() {
    let error = parse(vec!["x".repeat(1 << 20).into()]).unwrap_err();
    assert!(error.len() < 300, "{}", error.len());
}
