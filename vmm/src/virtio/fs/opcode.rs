//! The operations of FUSE that are served, and which of them change something.
//! It owns the one list that read-only shares are enforced by. It does not carry any operation out.
//! Source: Linux 6.12, include/uapi/linux/fuse.h, `enum fuse_opcode`.

/// Whether an operation may change a file, a directory or the attributes of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    Reads,
    /// Refused with EROFS by a read-only share. OPEN is not among them: what it may do is in its flags.
    Changes,
}

macro_rules! opcodes {
    ($($name:ident = $number:literal $effect:ident,)*) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Opcode { $($name = $number),* }

        impl Opcode {
            #[cfg(test)]
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// `None` is an operation that is not served: ENOSYS, after which Linux does not ask again.
            pub fn from_wire(number: u32) -> Option<Self> {
                Some(match number {
                    $($number => Self::$name,)*
                    _ => return None,
                })
            }

            pub fn effect(self) -> Effect {
                match self {
                    $(Self::$name => Effect::$effect,)*
                }
            }
        }
    };
}

opcodes! {
    Lookup = 1 Reads,
    Forget = 2 Reads,
    Getattr = 3 Reads,
    Setattr = 4 Changes,
    Readlink = 5 Reads,
    Symlink = 6 Changes,
    Mknod = 8 Changes,
    Mkdir = 9 Changes,
    Unlink = 10 Changes,
    Rmdir = 11 Changes,
    Rename = 12 Changes,
    Link = 13 Changes,
    Open = 14 Reads,
    Read = 15 Reads,
    Write = 16 Changes,
    Statfs = 17 Reads,
    Release = 18 Reads,
    Fsync = 20 Reads,
    Setxattr = 21 Changes,
    Getxattr = 22 Reads,
    Listxattr = 23 Reads,
    Removexattr = 24 Changes,
    Init = 26 Reads,
    Opendir = 27 Reads,
    Readdir = 28 Reads,
    Releasedir = 29 Reads,
    Fsyncdir = 30 Reads,
    Create = 35 Changes,
    Interrupt = 36 Reads,
    Destroy = 38 Reads,
    Ioctl = 39 Reads,
    BatchForget = 42 Reads,
    Fallocate = 43 Changes,
    Readdirplus = 44 Reads,
    Rename2 = 45 Changes,
    Lseek = 46 Reads,
    CopyFileRange = 47 Changes,
    Syncfs = 50 Reads,
    Tmpfile = 51 Changes,
}
