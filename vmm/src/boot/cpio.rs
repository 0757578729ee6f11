//! A cpio archive with one file, as the kernel unpacks it from an initramfs.
//! It does not read archives. Source: Linux `Documentation/driver-api/early-userspace/buffer-format.rst`.

/// An archive with the file `name` in its root; 4-byte aligned at its end.
pub fn archive(name: &str, content: &[u8]) -> Vec<u8> {
    const MODE_PRIVATE_FILE: u32 = 0o100_400;
    let mut archive = Vec::with_capacity(content.len() + 512);
    entry(&mut archive, name, MODE_PRIVATE_FILE, content);
    entry(&mut archive, "TRAILER!!!", 0, &[]);
    archive
}

fn entry(archive: &mut Vec<u8>, name: &str, mode: u32, content: &[u8]) {
    let size = u32::try_from(content.len()).expect("the boot file is small");
    let name_size = u32::try_from(name.len() + 1).expect("names are constants");
    archive.extend_from_slice(b"070701");
    // ino, mode, uid, gid, nlink, mtime, filesize, device and rdevice numbers, namesize, check
    for field in [1, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0] {
        archive.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    archive.extend_from_slice(name.as_bytes());
    archive.push(0);
    pad(archive);
    archive.extend_from_slice(content);
    pad(archive);
}

fn pad(archive: &mut Vec<u8>) {
    archive.resize(archive.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_holds_name_and_content_aligned() {
        let bytes = archive("boot.bin", b"hello");
        assert_eq!(bytes.len() % 4, 0);
        assert_eq!(&bytes[..6], b"070701");
        assert_eq!(&bytes[54..62], b"00000005", "file size");
        assert_eq!(&bytes[110..119], b"boot.bin\0");
        assert_eq!(&bytes[120..125], b"hello");
        assert!(bytes.windows(10).any(|window| window == b"TRAILER!!!"));
    }
}
