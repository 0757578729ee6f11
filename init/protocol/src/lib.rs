//! What the CLI and the guest's init say to each other: types, encoding and limits.
//! It owns the wire format and its version. It does no I/O, allocates nothing by a number that came from the
//! other side without a limit, and knows nothing of sockets, processes or terminals.
//!
//! A frame is a u32 with the body's length, a u8 with the message's kind, and the body; all integers are little
//! endian, strings are a u32 length and their bytes, lists a u32 count and their items. What outlives every
//! version: this header, a hello's length and first two bytes (its version), and [`Reply::VersionMismatch`].
#![forbid(unsafe_code)]

mod error;
mod frame;
mod message;
mod publish;
mod stream;
#[cfg(test)]
mod tests;
mod wire;

pub use error::Error;
pub use frame::{Decoder, decode};
pub use message::Message;
pub use publish::{PUBLISH_LEN, PUBLISH_PORT, Publish};
pub use stream::{AGENT_SOCKET, Answer, GATEWAY_PORT, HOST, STREAM_LEN, Stream};

/// Raised by one with every change of the wire format; both sides name theirs when they differ.
pub const VERSION: u16 = 1;
/// The guest's vsock port on which init serves all connections of this protocol.
pub const PORT: u32 = 1024;
/// Name of the boot config in the initramfs.
pub const BOOT_FILE: &str = "boot.bin";

/// A frame's body is never longer (argv and environment of a command together, for the most part).
pub const FRAME_MAX: usize = 1 << 20;
/// Bytes of a hello on the wire, its frame's header included. Whoever reads no more than this leaves the raw bytes that follow
/// a bulk connection's hello in the socket.
pub const HELLO_LEN: usize = wire::HEADER_LEN + 2 + 16 + 1;
/// Arguments of a command.
pub const ARGV_MAX: usize = 1 << 16;
/// Variables of a command's environment.
pub const ENV_MAX: usize = 1 << 16;
/// Bytes of one argument or variable; what Linux allows (MAX_ARG_STRLEN, which counts the final NUL).
pub const ARG_LEN_MAX: usize = (128 << 10) - 1;
/// Bytes of a path; what Linux allows (PATH_MAX, which counts the final NUL).
pub const PATH_LEN_MAX: usize = 4095;
/// Bytes of a file's name (NAME_MAX).
pub const NAME_LEN_MAX: usize = 255;
/// Bytes of a `user:group`.
pub const USER_LEN_MAX: usize = 255;
/// Bytes of a host name; what Linux allows (`__NEW_UTS_LEN`).
pub const HOSTNAME_LEN_MAX: usize = 64;
/// Bytes of a share's tag: virtio 1.2, 5.11.4 "Device configuration layout".
pub const TAG_LEN_MAX: usize = 36;
/// Bytes of the reason of a failure; a longer one is cut.
pub const MESSAGE_LEN_MAX: usize = 4 << 10;
/// Layers of a template.
pub const LAYERS_MAX: u8 = 16;
/// Shares of a sandbox.
pub const MOUNTS_MAX: usize = 64;
/// Bytes of a certificate for the sandbox, as PEM.
pub const AUTHORITY_LEN_MAX: usize = 4 << 10;
/// Ranges of hot-added memory.
pub const HOT_MEMORY_MAX: usize = 16;
/// The highest signal number.
pub const SIGNAL_MAX: u8 = 64;

/// Ties the connections of one session together; chosen at random by the CLI.
pub type Token = [u8; 16];

/// What a connection is for. All but `Control` carry raw bytes after the hello; a half-close is end of file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Requests one way, replies the other. When it closes, the session's command is hung up.
    Control,
    /// What the command reads.
    Stdin,
    /// What it writes.
    Stdout,
    /// What it writes on its error stream.
    Stderr,
    /// Both directions of a terminal.
    Tty,
}

/// The first frame on every connection. It carries [`VERSION`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The session that the connection belongs to.
    pub token: Token,
    /// What it does there.
    pub role: Role,
}

/// A terminal's size in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WinSize {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub columns: u16,
}

/// How the command's standard streams are connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stdio {
    /// A new pseudo-terminal of this size, carried by one `Tty` connection.
    Tty(WinSize),
    /// Pipes, a connection each for those that are true; the others are /dev/null.
    Pipes {
        /// A `Stdin` connection comes.
        stdin: bool,
        /// A `Stdout` connection comes.
        stdout: bool,
        /// A `Stderr` connection comes.
        stderr: bool,
    },
}

/// A command to run in the agent container. Having decoded one tells you: argv is not empty, no string holds a NUL,
/// and the working directory is absolute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exec {
    /// The program, by path or to be found in `PATH`, and its arguments. Bytes, as Unix has it.
    pub argv: Vec<Vec<u8>>,
    /// KEY=VALUE, complete: init adds nothing but HOME, USER, LOGNAME and SHELL where they are missing.
    pub env: Vec<Vec<u8>>,
    /// Absolute path in the container.
    pub cwd: Vec<u8>,
    /// A name or uid of the container's /etc/passwd, with an optional `:group`.
    pub user: String,
    /// Its standard streams.
    pub stdio: Stdio,
}

/// CLI to init, on a control connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Once per session, first.
    Exec(Exec),
    /// The terminal has a new size.
    Resize(WinSize),
    /// To the session's foreground process group; 1 to [`SIGNAL_MAX`].
    Signal(u8),
    /// The sandbox's disk now has this many bytes: let its file system follow. Answered by `Exited` with code 0, or `Failed`.
    GrowDisk(u64),
    /// End the sandbox: processes are ended, file systems synced, the VM powered off.
    Shutdown,
}

/// Init to CLI, on a control connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// The command is running.
    Started,
    /// It ended. Sent after its output has been passed on.
    Exited {
        /// Its exit code, or 128 + the signal's number.
        code: u8,
    },
    /// It could not be started.
    Failed {
        /// 125, 126 or 127, as Docker has them.
        code: u8,
        /// Why. Comes from the guest: escape it before a terminal sees it.
        message: String,
    },
    /// The hello named a version that init does not speak.
    VersionMismatch {
        /// The version that it does speak.
        init: u16,
    },
}

/// A share to mount: virtio-fs tag and where the container sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// The virtio-fs device's tag.
    pub tag: String,
    /// Absolute path.
    pub path: Vec<u8>,
    /// Mounted so for a clear error message; what enforces it is the server on the host.
    pub read_only: bool,
    /// The share is a single file, which the served folder holds under this name.
    pub file: Option<Vec<u8>>,
}

/// What init needs to know before the first command; passed as the file [`BOOT_FILE`] of the initramfs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BootConfig {
    /// Of the sandbox.
    pub hostname: String,
    /// How many layers the template has, 1 to [`LAYERS_MAX`].
    pub layers: u8,
    /// In the order in which they are mounted: a share in another's folder comes after it.
    pub mounts: Vec<Mount>,
    /// Guest physical ranges (start, length) to hot-add after the first command has started.
    pub hot_memory: Vec<(u64, u64)>,
    /// A private Docker, where the template has one.
    pub docker: bool,
    /// A way to the host's gateway, for connections and names.
    pub network: bool,
    /// A socket by which programs reach the user's SSH agent, through the gateway.
    pub agent: bool,
    /// Address and interrupt line of the virtio-mmio device that the kernel is told of after the first command has started.
    pub late_device: (u64, u8),
    /// What the sandbox's programs are to trust besides what they do: a certificate as PEM. Empty is none.
    pub authority: Vec<u8>,
    /// The guest's wall clock at start, nanoseconds since the epoch (there is no RTC).
    pub wall_clock_ns: u64,
}
