//! The messages: which fields each has, in which order.
//! It owns the kinds' numbers and the checks that a field needs beyond its length. It knows no stream.

use crate::wire::{HEADER_LEN, Reader, Writer};
use crate::{
    ARG_LEN_MAX, ARGV_MAX, AUTHORITY_LEN_MAX, BootConfig, ENV_MAX, Error, Exec, FRAME_MAX, HELLO_LEN,
    HOSTNAME_LEN_MAX, HOT_MEMORY_MAX, Hello, LAYERS_MAX, MESSAGE_LEN_MAX, MOUNTS_MAX, Mount, NAME_LEN_MAX,
    PATH_LEN_MAX, Reply, Request, Role, SIGNAL_MAX, Stdio, TAG_LEN_MAX, USER_LEN_MAX, VERSION, WinSize,
};

const HELLO: u8 = 0x01;
const BOOT_CONFIG: u8 = 0x02;
const EXEC: u8 = 0x10;
const RESIZE: u8 = 0x11;
const SIGNAL: u8 = 0x12;
const SHUTDOWN: u8 = 0x13;
const GROW_DISK: u8 = 0x14;
const STARTED: u8 = 0x20;
const EXITED: u8 = 0x21;
const FAILED: u8 = 0x22;
const VERSION_MISMATCH: u8 = 0x23;

/// Something that travels as one frame.
pub trait Message: Sized {
    /// The longest body that can be one: a longer frame is refused by its header alone.
    const BODY_MAX: usize;

    /// The whole frame; an error when a value is not one that the other side would accept.
    fn encode(&self) -> Result<Vec<u8>, Error>;

    /// The message that a frame's kind and body are. Bodies are untrusted: any bytes are an error at worst.
    fn decode(kind: u8, body: &[u8]) -> Result<Self, Error>;
}

impl Message for Hello {
    const BODY_MAX: usize = HELLO_LEN - HEADER_LEN;

    fn encode(&self) -> Result<Vec<u8>, Error> {
        let mut w = Writer::new(HELLO);
        w.u16(VERSION);
        w.array(&self.token);
        w.u8(match self.role {
            Role::Control => 0,
            Role::Stdin => 1,
            Role::Stdout => 2,
            Role::Stderr => 3,
            Role::Tty => 4,
        });
        w.finish()
    }

    fn decode(kind: u8, body: &[u8]) -> Result<Self, Error> {
        if kind != HELLO {
            return Err(Error::Kind { kind });
        }
        let mut r = Reader::new(body);
        match r.u16("version")? {
            VERSION => {}
            theirs => return Err(Error::Version { theirs }),
        }
        let token = r.array("token")?;
        let role = match r.u8("role")? {
            0 => Role::Control,
            1 => Role::Stdin,
            2 => Role::Stdout,
            3 => Role::Stderr,
            4 => Role::Tty,
            _ => return Err(Error::Invalid { field: "role", must: "0 to 4" }),
        };
        r.end()?;
        Ok(Self { token, role })
    }
}

impl Message for Request {
    const BODY_MAX: usize = FRAME_MAX;

    fn encode(&self) -> Result<Vec<u8>, Error> {
        match self {
            Self::Exec(exec) => {
                let mut w = Writer::new(EXEC);
                exec.write(&mut w)?;
                w.finish()
            }
            Self::Resize(size) => {
                let mut w = Writer::new(RESIZE);
                size.write(&mut w);
                w.finish()
            }
            Self::Signal(number) => {
                let mut w = Writer::new(SIGNAL);
                w.u8(signal(*number)?);
                w.finish()
            }
            Self::GrowDisk(bytes) => {
                let mut w = Writer::new(GROW_DISK);
                w.u64(*bytes);
                w.finish()
            }
            Self::Shutdown => Writer::new(SHUTDOWN).finish(),
        }
    }

    fn decode(kind: u8, body: &[u8]) -> Result<Self, Error> {
        let mut r = Reader::new(body);
        let request = match kind {
            EXEC => Self::Exec(Exec::read(&mut r)?),
            RESIZE => Self::Resize(WinSize::read(&mut r)?),
            SIGNAL => Self::Signal(signal(r.u8("signal")?)?),
            GROW_DISK => Self::GrowDisk(r.u64("size of the disk")?),
            SHUTDOWN => Self::Shutdown,
            _ => return Err(Error::Kind { kind }),
        };
        r.end()?;
        Ok(request)
    }
}

impl Message for Reply {
    const BODY_MAX: usize = 64 + MESSAGE_LEN_MAX;

    fn encode(&self) -> Result<Vec<u8>, Error> {
        match self {
            Self::Started => Writer::new(STARTED).finish(),
            Self::Exited { code } => {
                let mut w = Writer::new(EXITED);
                w.u8(*code);
                w.finish()
            }
            Self::Failed { code, message } => {
                let mut w = Writer::new(FAILED);
                w.u8(*code);
                let cut = message.floor_char_boundary(MESSAGE_LEN_MAX);
                w.bytes("message", MESSAGE_LEN_MAX, &message.as_bytes()[..cut])?;
                w.finish()
            }
            Self::VersionMismatch { init } => {
                let mut w = Writer::new(VERSION_MISMATCH);
                w.u16(*init);
                w.finish()
            }
        }
    }

    fn decode(kind: u8, body: &[u8]) -> Result<Self, Error> {
        let mut r = Reader::new(body);
        let reply = match kind {
            STARTED => Self::Started,
            EXITED => Self::Exited { code: r.u8("exit code")? },
            FAILED => Self::Failed { code: r.u8("exit code")?, message: r.text("message", MESSAGE_LEN_MAX)? },
            VERSION_MISMATCH => Self::VersionMismatch { init: r.u16("version")? },
            _ => return Err(Error::Kind { kind }),
        };
        r.end()?;
        Ok(reply)
    }
}

impl Message for BootConfig {
    const BODY_MAX: usize = FRAME_MAX;

    fn encode(&self) -> Result<Vec<u8>, Error> {
        let mut w = Writer::new(BOOT_CONFIG);
        w.bytes("hostname", HOSTNAME_LEN_MAX, self.hostname.as_bytes())?;
        w.u8(layers(self.layers)?);
        w.list("mounts", MOUNTS_MAX, &self.mounts, |w, mount| mount.write(w))?;
        w.list("hot memory", HOT_MEMORY_MAX, &self.hot_memory, |w, &(start, length)| {
            w.u64(start);
            w.u64(length);
            Ok(())
        })?;
        w.u8(self.docker.into());
        w.u8(self.network.into());
        w.u8(self.agent.into());
        w.u64(self.late_device.0);
        w.u8(self.late_device.1);
        w.bytes("authority", AUTHORITY_LEN_MAX, &self.authority)?;
        w.u64(self.wall_clock_ns);
        w.finish()
    }

    fn decode(kind: u8, body: &[u8]) -> Result<Self, Error> {
        if kind != BOOT_CONFIG {
            return Err(Error::Kind { kind });
        }
        let mut r = Reader::new(body);
        let hostname = r.text("hostname", HOSTNAME_LEN_MAX)?;
        let layers = layers(r.u8("layers")?)?;
        let mounts = r.list("mounts", MOUNTS_MAX, Mount::read)?;
        let hot_memory = r.list("hot memory", HOT_MEMORY_MAX, |r| {
            Ok((r.u64("hot memory start")?, r.u64("hot memory length")?))
        })?;
        let docker = r.bool("docker")?;
        let network = r.bool("network")?;
        let agent = r.bool("agent")?;
        let late_device = (r.u64("late device's address")?, r.u8("late device's interrupt")?);
        let authority = r.bytes("authority", AUTHORITY_LEN_MAX)?.to_vec();
        let wall_clock_ns = r.u64("wall clock")?;
        r.end()?;
        let all = Self {
            hostname,
            layers,
            mounts,
            hot_memory,
            docker,
            network,
            agent,
            late_device,
            authority,
            wall_clock_ns,
        };
        Ok(all)
    }
}

impl Exec {
    fn write(&self, w: &mut Writer) -> Result<(), Error> {
        if self.argv.is_empty() {
            return Err(NO_COMMAND);
        }
        w.list("argv", ARGV_MAX, &self.argv, |w, it| {
            w.bytes("argument", ARG_LEN_MAX, no_nul("argument", it)?)
        })?;
        w.list("env", ENV_MAX, &self.env, |w, it| w.bytes("variable", ARG_LEN_MAX, no_nul("variable", it)?))?;
        w.bytes("cwd", PATH_LEN_MAX, absolute("cwd", &self.cwd)?)?;
        w.bytes("user", USER_LEN_MAX, no_nul("user", self.user.as_bytes())?)?;
        match self.stdio {
            Stdio::Tty(size) => {
                w.u8(0);
                size.write(w);
            }
            Stdio::Pipes { stdin, stdout, stderr } => {
                w.u8(1);
                [stdin, stdout, stderr].iter().for_each(|&it| w.u8(it.into()));
            }
        }
        Ok(())
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, Error> {
        let argv = r.list("argv", ARGV_MAX, |r| owned_string(r, "argument"))?;
        if argv.is_empty() {
            return Err(NO_COMMAND);
        }
        let env = r.list("env", ENV_MAX, |r| owned_string(r, "variable"))?;
        let cwd = absolute("cwd", r.bytes("cwd", PATH_LEN_MAX)?)?.to_vec();
        let user = r.text("user", USER_LEN_MAX)?;
        no_nul("user", user.as_bytes())?;
        let stdio = match r.u8("stdio")? {
            0 => Stdio::Tty(WinSize::read(r)?),
            1 => {
                Stdio::Pipes { stdin: r.bool("stdin")?, stdout: r.bool("stdout")?, stderr: r.bool("stderr")? }
            }
            _ => return Err(Error::Invalid { field: "stdio", must: "0 or 1" }),
        };
        Ok(Self { argv, env, cwd, user, stdio })
    }
}

impl Mount {
    fn write(&self, w: &mut Writer) -> Result<(), Error> {
        w.bytes("tag", TAG_LEN_MAX, no_nul("tag", self.tag.as_bytes())?)?;
        w.bytes("path", PATH_LEN_MAX, absolute("path", &self.path)?)?;
        w.u8(self.read_only.into());
        w.u8(self.file.is_some().into());
        match &self.file {
            Some(name) => w.bytes("file name", NAME_LEN_MAX, file_name(name)?),
            None => Ok(()),
        }
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, Error> {
        let tag = r.text("tag", TAG_LEN_MAX)?;
        no_nul("tag", tag.as_bytes())?;
        let path = absolute("path", r.bytes("path", PATH_LEN_MAX)?)?.to_vec();
        let read_only = r.bool("read only")?;
        let file = match r.bool("is a file")? {
            true => Some(file_name(r.bytes("file name", NAME_LEN_MAX)?)?.to_vec()),
            false => None,
        };
        Ok(Self { tag, path, read_only, file })
    }
}

impl WinSize {
    fn write(self, w: &mut Writer) {
        w.u16(self.rows);
        w.u16(self.columns);
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, Error> {
        Ok(Self { rows: r.u16("rows")?, columns: r.u16("columns")? })
    }
}

const NO_COMMAND: Error = Error::Invalid { field: "argv", must: "one argument or more" };

fn owned_string(r: &mut Reader<'_>, field: &'static str) -> Result<Vec<u8>, Error> {
    Ok(no_nul(field, r.bytes(field, ARG_LEN_MAX)?)?.to_vec())
}

fn no_nul<'a>(field: &'static str, bytes: &'a [u8]) -> Result<&'a [u8], Error> {
    if bytes.contains(&0) { Err(Error::Invalid { field, must: "free of NUL" }) } else { Ok(bytes) }
}

fn absolute<'a>(field: &'static str, path: &'a [u8]) -> Result<&'a [u8], Error> {
    if path.first() != Some(&b'/') {
        return Err(Error::Invalid { field, must: "an absolute path" });
    }
    no_nul(field, path)
}

/// One entry of a folder: nothing that leads out of it.
fn file_name(name: &[u8]) -> Result<&[u8], Error> {
    if name.is_empty() || name == b"." || name == b".." || name.contains(&b'/') {
        return Err(Error::Invalid { field: "file name", must: "a single name" });
    }
    no_nul("file name", name)
}

fn layers(count: u8) -> Result<u8, Error> {
    match count {
        1..=LAYERS_MAX => Ok(count),
        _ => Err(Error::Invalid { field: "layers", must: "1 to 16" }),
    }
}

fn signal(number: u8) -> Result<u8, Error> {
    match number {
        1..=SIGNAL_MAX => Ok(number),
        _ => Err(Error::Invalid { field: "signal", must: "1 to 64" }),
    }
}
