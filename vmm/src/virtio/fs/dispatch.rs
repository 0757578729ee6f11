//! From an opcode and the bytes of its request to the operation, and from what that returns to the bytes of the reply.
//! It does nothing itself, and checks nothing but that a request is made of what its operation takes.

use rustix::io::Errno;

use super::inode::Node;
use super::opcode::Opcode;
use super::passthrough::Passthrough;
use super::wire::{
    BatchForgetIn, Body, CopyFileRangeIn, CreateIn, EntryOut, FallocateIn, ForgetIn, ForgetOne, FsyncIn,
    GETATTR_FH, GetattrIn, GetxattrIn, LinkIn, LseekIn, LseekOut, MkdirIn, MknodIn, Name, OpenIn, OpenOut,
    ReadIn, ReleaseIn, Rename2In, RenameIn, SetattrIn, SetxattrIn, Wire, WriteIn, WriteOut,
};
use crate::virtio::{Reader, Writer};

/// The two sides of a request as an operation sees them.
pub struct Call<'a, 'm> {
    pub node: Node,
    pub reader: &'a mut Reader<'m>,
    pub writer: &'a mut Writer<'m>,
    pub reply: &'a mut Vec<u8>,
}

pub fn dispatch(
    files: &mut Passthrough,
    opcode: Opcode,
    body: Body<'_>,
    call: Call<'_, '_>,
) -> Result<(), Errno> {
    let Call { node, reader, writer, reply } = call;
    match opcode {
        Opcode::Lookup => files.lookup(node, body.only_name()?)?.encode(reply),
        Opcode::Forget => files.forget(node.0, body.only::<ForgetIn>()?.lookups),
        Opcode::BatchForget => batch_forget(files, body)?,
        Opcode::Getattr => {
            let GetattrIn { flags, fh, .. } = body.only()?;
            files.getattr(node, (flags & GETATTR_FH != 0).then_some(fh))?.encode(reply);
        }
        Opcode::Setattr => files.setattr(node, &body.only::<SetattrIn>()?)?.encode(reply),
        Opcode::Statfs => files.statfs()?.encode(reply),
        Opcode::Open => {
            let OpenIn { flags, open_flags } = body.only()?;
            files.open(node, flags, open_flags)?.encode(reply);
        }
        Opcode::Create => {
            let (request, name) = body.with_name::<CreateIn>()?;
            encode_opened(files.create(node, name, &request)?, reply);
        }
        Opcode::Tmpfile => {
            // Linux sends the name its own entry has, which is a slash.
            let mut body = body;
            let (request, _) = (body.take::<CreateIn>()?, body.text()?);
            body.end()?;
            encode_opened(files.tmpfile(node, &request)?, reply);
        }
        Opcode::Read => drop(files.read(node, &body.only::<ReadIn>()?, writer)?),
        Opcode::Write => size(files.write(node, &body.only::<WriteIn>()?, reader)?).encode(reply),
        Opcode::CopyFileRange => {
            size(files.copy_file_range(node, &body.only::<CopyFileRangeIn>()?)?).encode(reply);
        }
        Opcode::Fallocate => files.fallocate(node, &body.only::<FallocateIn>()?)?,
        Opcode::Lseek => LseekOut { offset: files.lseek(node, &body.only::<LseekIn>()?)? }.encode(reply),
        Opcode::Fsync | Opcode::Fsyncdir => files.fsync(node, &body.only::<FsyncIn>()?)?,
        Opcode::Syncfs => files.syncfs()?,
        Opcode::Opendir => files.opendir(node)?.encode(reply),
        Opcode::Readdir | Opcode::Readdirplus => {
            let mut request: ReadIn = body.only()?;
            request.size = request.size.min(u32::try_from(writer.remaining()).unwrap_or(u32::MAX));
            files.readdir(node, &request, opcode == Opcode::Readdirplus, reply)?;
        }
        Opcode::Release | Opcode::Releasedir => files.release(node, body.only::<ReleaseIn>()?.fh)?,
        Opcode::Ioctl => return Err(Errno::NOTTY),
        Opcode::Interrupt | Opcode::Init | Opcode::Destroy => (),
        Opcode::Readlink => files.readlink(node, reply)?,
        Opcode::Getxattr | Opcode::Listxattr | Opcode::Setxattr | Opcode::Removexattr => {
            dispatch_xattr(files, opcode, body, node, reply)?;
        }
        _ => dispatch_entry(files, opcode, body, node, reply)?,
    }
    Ok(())
}

/// Operations that make, rename or remove an entry of the directory `node`.
fn dispatch_entry(
    files: &mut Passthrough,
    opcode: Opcode,
    mut body: Body<'_>,
    node: Node,
    reply: &mut Vec<u8>,
) -> Result<(), Errno> {
    match opcode {
        Opcode::Symlink => {
            let (name, target) = (body.name()?, body.text()?);
            body.end()?;
            files.symlink(node, name, target)?.encode(reply);
        }
        Opcode::Mknod => {
            let (request, name) = body.with_name::<MknodIn>()?;
            files.mknod(node, name, &request)?.encode(reply);
        }
        Opcode::Mkdir => {
            let (request, name) = body.with_name::<MkdirIn>()?;
            files.mkdir(node, name, request.mode)?.encode(reply);
        }
        Opcode::Link => {
            let (request, name) = body.with_name::<LinkIn>()?;
            files.link(Node(request.old_node), node, name)?.encode(reply);
        }
        Opcode::Unlink => files.unlink(node, body.only_name()?)?,
        Opcode::Rmdir => files.rmdir(node, body.only_name()?)?,
        Opcode::Rename => {
            let RenameIn { new_parent } = body.take()?;
            let (old, new) = two_names(body)?;
            files.rename((node, old), (Node(new_parent), new), 0)?;
        }
        Opcode::Rename2 => {
            let Rename2In { new_parent, flags, .. } = body.take()?;
            let (old, new) = two_names(body)?;
            files.rename((node, old), (Node(new_parent), new), flags)?;
        }
        _ => return Err(Errno::NOSYS),
    }
    Ok(())
}

fn dispatch_xattr(
    files: &mut Passthrough,
    opcode: Opcode,
    mut body: Body<'_>,
    node: Node,
    reply: &mut Vec<u8>,
) -> Result<(), Errno> {
    match opcode {
        Opcode::Listxattr => files.listxattr(node, body.only::<GetxattrIn>()?.size, reply),
        Opcode::Getxattr => {
            let GetxattrIn { size, .. } = body.take()?;
            let name = body.text()?;
            body.end()?;
            files.getxattr(node, name, size, reply)
        }
        Opcode::Setxattr => {
            let SetxattrIn { size, flags } = body.take()?;
            let (name, value) = (body.text()?, body.rest());
            if value.len() != size as usize {
                return Err(Errno::INVAL);
            }
            files.setxattr(node, name, value, flags)
        }
        _ => {
            let name = body.text()?;
            body.end()?;
            files.removexattr(node, name)
        }
    }
}

/// The count is the guest's; the loop ends with the request's bytes.
fn batch_forget(files: &mut Passthrough, mut body: Body<'_>) -> Result<(), Errno> {
    for _ in 0..body.take::<BatchForgetIn>()?.count {
        let ForgetOne { node, lookups } = body.take()?;
        files.forget(node, lookups);
    }
    body.end()
}

fn two_names(mut body: Body<'_>) -> Result<(Name<'_>, Name<'_>), Errno> {
    let names = (body.name()?, body.name()?);
    body.end().map(|()| names)
}

fn encode_opened((entry, open): (EntryOut, OpenOut), reply: &mut Vec<u8>) {
    entry.encode(reply);
    open.encode(reply);
}

fn size(bytes: usize) -> WriteOut {
    WriteOut { size: u32::try_from(bytes).expect("IO_MAX and COPY_MAX are less"), padding: 0 }
}
