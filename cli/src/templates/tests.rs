//! Descriptions that are not what they should be, and names.

use super::*;

const HASH: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

#[test]
fn descriptions() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("template.json");
    assert!(super::read(&path).unwrap().is_none());
    let read = |json: &str| {
        fs::write(&path, json).unwrap();
        super::read(&path).map_or_else(|error| format!("{error:#}"), |_| "good".into())
    };
    let good = format!(
        r#"{{"name":"shell","format":2,"layers":[{{"sha256":"{HASH}","size":1}}],"env":[],"user":"u"}}"#
    );
    assert_eq!(read(&good), "good");
    assert!(read(&good.replace("\"format\":2", "\"format\":3")).contains("has format 3"));
    assert!(read(&good.replace(HASH, "../../x")).contains("is not a hash"));
    let layer = format!(r#"{{"sha256":"{HASH}","size":1}}"#);
    assert!(read(&good.replace(&layer, "")).contains("0 layers are not from 1 to 16"));
    assert!(read(&good.replace(&layer, &vec![layer.clone(); 17].join(","))).contains("17 layers"));
    for bad in ["", "null", "[]", "{", "\u{feff}{}", &good.replace(":1}", ":\"1\"}")] {
        assert!(read(bad).contains("is not what a template.json should be"), "{bad}");
    }
    assert!(read(&" ".repeat(2 << 20)).contains("too long"));
}

#[test]
fn names() {
    for good in
        ["shell", "my.template", "a_b", "docker.io/library/debian:trixie", "localhost:5000/x@sha256:ab"]
    {
        assert!(is_name(good), "{good}");
        assert!(!folder_name(good).contains('/'));
    }
    for bad in ["", ".", "..", "/", "a//b", "a/../b", "-x", ".x", "a+b", "a b", "a\0", "é", &"x".repeat(201)]
    {
        assert!(!is_name(bad), "{bad}");
    }
}
