//! Files that are not what they should be.

use std::fs;

use super::*;

fn check(content: &[u8], check: fn(&File, u64) -> Result<()>) -> String {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("part");
    fs::write(&path, content).unwrap();
    part("part", path, check).map_or_else(|error| error.root_cause().to_string(), |_| "whole".into())
}

fn elf(segment_end: u64) -> Vec<u8> {
    let mut file = vec![0; 64 + 56 + 100];
    file[..6].copy_from_slice(b"\x7fELF\x02\x01");
    file[18] = 62;
    file[32] = 64;
    file[54] = 56;
    file[56] = 1;
    file[64 + 32..64 + 40].copy_from_slice(&segment_end.to_le_bytes());
    file
}

#[test]
fn kernels() {
    assert_eq!(check(&elf(220), check_kernel), "whole");
    assert_eq!(check(&elf(221), check_kernel), "it is cut off: 220 bytes are not all of it");
    assert_eq!(check(&elf(u64::MAX), check_kernel), "it is cut off: 220 bytes are not all of it");
    assert_eq!(check(&elf(220)[..100], check_kernel), "it is cut off");
    assert_eq!(check(b"", check_kernel), "it is cut off");
    assert_eq!(check(&[0x1f; 4096], check_kernel), "it is not an ELF file of 64 bits");
    let mut arm = elf(220);
    arm[18] = 183;
    assert_eq!(check(&arm, check_kernel), "it is for another processor");
    let mut many = elf(220);
    many[57] = 255;
    assert_eq!(check(&many, check_kernel), "its program headers make no sense");
}

#[test]
fn archives_and_disks() {
    assert_eq!(check(b"070701....TRAILER!!!\0\0", check_cpio), "whole");
    assert_eq!(
        check(&[b"070701".as_slice(), &[0; 2000]].concat(), check_cpio),
        "it is cut off: its end is missing"
    );
    assert_eq!(check(&[0x1f, 0x8b, 8, 0, 0, 0, 0], check_cpio), "it is not an uncompressed cpio archive");
    assert_eq!(check(b"0707", check_cpio), "it is cut off");
    let mut disk = vec![0; 8192];
    assert_eq!(check(&disk, check_ext4), "it is not an ext4 image");
    disk[1024 + 56..1024 + 58].copy_from_slice(&[0x53, 0xef]);
    disk[1024 + 4] = 8;
    assert_eq!(check(&disk, check_ext4), "whole");
    disk[1024 + 4] = 9;
    assert_eq!(check(&disk, check_ext4), "it is cut off: 8192 bytes are not all of it");
    disk[1024 + 24] = 255;
    assert_eq!(check(&disk, check_ext4), "it is cut off: 8192 bytes are not all of it");
}
