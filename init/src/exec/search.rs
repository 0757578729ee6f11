//! Where a program is: the candidates for a command's name along a PATH.
//! It owns the search order and what its failures mean. It executes nothing itself.

use std::ffi::{CStr, CString};

use rustix::io::Errno;

/// What Docker uses, too, when the environment has no PATH.
const DEFAULT_PATH: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// It was found but cannot be executed.
pub const NOT_EXECUTABLE: u8 = 126;
/// There is no such command.
pub const NOT_FOUND: u8 = 127;

/// Tries `execute`, which returns only when it failed, on each file that `program` may mean. Returns the exit code and
/// the reason of the failure that says most: "permission denied" says more than "not found" in a later folder.
pub fn search(program: &[u8], env: &[Vec<u8>], mut execute: impl FnMut(&CStr) -> Errno) -> (u8, String) {
    let mut try_file = |file: Vec<u8>| CString::new(file).map_or(Errno::NOENT, |file| execute(&file));
    if program.contains(&b'/') {
        return failure(program, try_file(program.to_vec()));
    }
    let mut worst = None;
    for folder in path(env).split(|&b| b == b':').filter(|_| !program.is_empty()) {
        // POSIX.1-2017, 8.3 "Other Environment Variables": an empty entry is the working directory.
        let folder = if folder.is_empty() { b"." } else { folder };
        match try_file([folder, b"/", program].concat()) {
            Errno::NOENT | Errno::NOTDIR => {}
            Errno::ACCESS => worst = Some(Errno::ACCESS),
            errno => return failure(program, errno),
        }
    }
    match worst {
        Some(errno) => failure(program, errno),
        None => (NOT_FOUND, format!("exec: {}: not found in PATH", quoted(program))),
    }
}

/// Bytes as a message shows them.
pub fn quoted(bytes: &[u8]) -> String {
    format!("\"{}\"", bytes.escape_ascii())
}

fn failure(program: &[u8], errno: Errno) -> (u8, String) {
    let code = if errno == Errno::NOENT { NOT_FOUND } else { NOT_EXECUTABLE };
    (code, format!("exec: {}: {errno}", quoted(program)))
}

fn path(env: &[Vec<u8>]) -> &[u8] {
    env.iter().find_map(|it| it.strip_prefix(b"PATH=")).unwrap_or(DEFAULT_PATH)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Which files were tried, and the exit code, when each fails as `errno` says.
    fn tried(program: &str, env: &[&str], errno: impl Fn(&str) -> Errno) -> (Vec<String>, u8) {
        let env: Vec<_> = env.iter().map(|it| it.as_bytes().to_vec()).collect();
        let mut files = Vec::new();
        let (code, _) = search(program.as_bytes(), &env, |file| {
            files.push(file.to_str().unwrap().to_owned());
            errno(file.to_str().unwrap())
        });
        (files, code)
    }

    #[test]
    fn a_name_is_looked_for_along_the_path_in_order() {
        let (files, code) = tried("ls", &["XPATH=/x", "PATH=/a::b"], |_| Errno::NOENT);
        assert_eq!((files, code), (vec!["/a/ls".into(), "./ls".into(), "b/ls".into()], NOT_FOUND));
        let (files, _) = tried("ls", &[], |_| Errno::NOTDIR);
        assert_eq!(files.len(), 6);
        assert_eq!(tried("", &["PATH=/a"], |_| Errno::NOENT), (vec![], NOT_FOUND));
    }

    #[test]
    fn a_path_is_taken_as_it_is() {
        assert_eq!(tried("./ls", &["PATH=/a"], |_| Errno::NOENT), (vec!["./ls".into()], NOT_FOUND));
        assert_eq!(tried("/bin", &["PATH=/a"], |_| Errno::ACCESS), (vec!["/bin".into()], NOT_EXECUTABLE));
    }

    #[test]
    fn a_file_that_may_not_be_executed_is_remembered_but_not_the_end() {
        let errno = |file: &str| if file == "/a/ls" { Errno::ACCESS } else { Errno::NOENT };
        assert_eq!(
            tried("ls", &["PATH=/a:/b"], errno),
            (vec!["/a/ls".into(), "/b/ls".into()], NOT_EXECUTABLE)
        );
    }

    #[test]
    fn a_file_of_no_known_format_is_the_end() {
        assert_eq!(tried("ls", &["PATH=/a:/b"], |_| Errno::NOEXEC), (vec!["/a/ls".into()], NOT_EXECUTABLE));
    }

    #[test]
    fn a_message_shows_no_control_bytes() {
        let (_, message) = search(b"a\x1b[2J\xff", &[b"PATH=/a".to_vec()], |_| Errno::NOENT);
        assert_eq!(message, "exec: \"a\\x1b[2J\\xff\": not found in PATH");
    }
}
