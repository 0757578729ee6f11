//! `coracle template pull` and `load`: container images as templates.

use std::path::Path;

use anyhow::{Context, Result};
use argh::{ArgsInfo, FromArgs};

use crate::output::print;
use crate::templates::images;
use crate::text::{Raw, quoted};

#[derive(FromArgs, ArgsInfo)]
#[argh(
    subcommand,
    name = "pull",
    help_triggers("-h", "--help"),
    usage = "IMAGE",
    note = "The image's name begins with its registry. Logins are those of docker login, in ~/.docker/config.json. Mirrors are in
~/.config/coracle/registries.json (README.md has an example). A registry on this machine's loopback may
be without TLS. What was interrupted is gone on with. Each layer is unpacked in a virtual machine of its own.",
    example = "coracle template pull docker.io/library/debian:trixie
coracle run -t docker.io/library/debian:trixie shell"
)]
/// Get an image from a registry and make a template of it, in place of an older one.
pub struct Pull {
    /// the image: REGISTRY/PATH[:TAG][@sha256:DIGEST]
    #[argh(positional, arg_name = "IMAGE")]
    pub image: Raw,
}

impl Pull {
    pub fn run(self) -> Result<u8> {
        let typed = self.image.0.to_str();
        let reference = typed.map(images::reference).transpose()?.flatten().with_context(|| {
            format!(
                "{} is not the name of an image with its registry, such as docker.io/library/debian:trixie",
                quoted(&self.image.0)
            )
        })?;
        print(&format!("{}\n", images::pull(&reference)?.name))?;
        Ok(0)
    }
}

#[derive(FromArgs, ArgsInfo)]
#[argh(
    subcommand,
    name = "load",
    help_triggers("-h", "--help"),
    usage = "[--name NAME] FILE",
    example = "docker save my-image >image.tar && coracle template load image.tar"
)]
/// Make a template of an image in a file: an archive of docker save, or an OCI layout (a folder, or an archive of one).
pub struct Load {
    /// name of the template; the default is the image's. Of several images in the file, it says which
    #[argh(option, arg_name = "NAME")]
    pub name: Option<Raw>,
    /// the archive or folder
    #[argh(positional, arg_name = "FILE")]
    pub file: Raw,
}

impl Load {
    pub fn run(self) -> Result<u8> {
        let name = self.name.as_ref().map(super::name).transpose()?;
        print(&format!("{}\n", images::load(Path::new(&self.file.0), name)?.name))?;
        Ok(0)
    }
}
