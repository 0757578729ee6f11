//! What the CLI and the guest's init say to each other: types, encoding and limits.
//! It owns the wire format and its version. It does no I/O, allocates nothing by a number that came from the
//! other side without a limit, and knows nothing of sockets, processes or terminals.
#![forbid(unsafe_code)]

/// Raised by one with every change of the wire format; both sides name theirs when they differ.
pub const VERSION: u16 = 1;
/// The guest's vsock port on which init serves all connections of this protocol.
pub const PORT: u32 = 1024;
/// A frame's body is never longer (argv and environment of a command together, for the most part).
pub const FRAME_MAX: usize = 1 << 20;

/// Ties the connections of one session together; chosen at random by the CLI.
pub type Token = [u8; 16];

/// What a connection is for. All but `Control` carry raw bytes after the hello; a half-close is end of file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Control,
    Stdin,
    Stdout,
    Stderr,
    /// Both directions of a terminal.
    Tty,
}

/// The first frame on every connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    pub version: u16,
    pub token: Token,
    pub role: Role,
}

/// A terminal's size in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WinSize {
    pub rows: u16,
    pub columns: u16,
}

/// How the command's standard streams are connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stdio {
    /// A new pseudo-terminal of this size, carried by one `Tty` connection.
    Tty(WinSize),
    /// Pipes, a connection each for those that are true; the others are /dev/null.
    Pipes { stdin: bool, stdout: bool, stderr: bool },
}

/// A command to run in the agent container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exec {
    /// Never empty. Bytes, as Unix has it; no NUL.
    pub argv: Vec<Vec<u8>>,
    /// KEY=VALUE, complete: init adds nothing but HOME, USER and LOGNAME where they are missing.
    pub env: Vec<Vec<u8>>,
    /// Absolute path in the container.
    pub cwd: Vec<u8>,
    /// A name or uid of the container's /etc/passwd, with an optional `:group`.
    pub user: String,
    pub stdio: Stdio,
}

/// CLI to init, on a control connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Once per session, first.
    Exec(Exec),
    Resize(WinSize),
    /// To the session's foreground process group.
    Signal(u8),
    /// End the sandbox: processes are ended, file systems synced, the VM powered off.
    Shutdown,
}

/// Init to CLI, on a control connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// The command is running.
    Started,
    /// It ended: its exit code, or 128 + the signal's number. Sent after its output has been passed on.
    Exited { code: u8 },
    /// It could not be started: 125, 126 or 127 as Docker has them, and why.
    Failed { code: u8, message: String },
    /// The hello named a version that init does not speak.
    VersionMismatch { init: u16 },
}

/// A share to mount: virtio-fs tag and where the container sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    pub tag: String,
    /// Absolute path.
    pub path: Vec<u8>,
    pub read_only: bool,
    /// The share is a single file, which the served folder holds under this name.
    pub file: Option<Vec<u8>>,
}

/// What init needs to know before the first command; passed as the file `BOOT_FILE` of the initramfs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BootConfig {
    pub hostname: String,
    pub mounts: Vec<Mount>,
    /// Guest physical ranges (start, length) to hot-add after the first command has started.
    pub hot_memory: Vec<(u64, u64)>,
    /// The guest's wall clock at start, nanoseconds since the epoch (there is no RTC).
    pub wall_clock_ns: u64,
}

/// Name of the boot config in the initramfs.
pub const BOOT_FILE: &str = "boot.bin";
