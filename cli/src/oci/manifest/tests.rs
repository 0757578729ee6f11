//! Configurations of images, good and bad, and documents of any kind.

use serde_json::{Value, json};

use super::*;

fn config(run: &Value) -> Result<ImageConfig> {
    let json = json!({"architecture": "amd64", "os": "linux", "config": run,
        "rootfs": {"type": "layers", "diff_ids": [Digest::of(b"")]}});
    Ok(ImageConfig::parse(json.to_string().as_bytes())?.0)
}

#[test]
fn what_is_not_said_is_empty() {
    for run in [json!(null), json!({}), json!({"Env": null, "Cmd": null, "User": "", "Volumes": {"/x": {}}})]
    {
        assert_eq!(config(&run).unwrap(), ImageConfig::default());
    }
    let labels: BTreeMap<_, _> = (0..10_000).map(|number| (number.to_string(), String::new())).collect();
    assert_eq!(config(&json!({"Labels": labels})).unwrap().labels.len(), 10_000);
}

#[test]
fn what_makes_no_sense_is_refused() {
    for (run, complaint) in [
        (json!({"Entrypoint": "/bin/sh"}), "not one that is understood"),
        (json!({"Env": ["A"]}), "the variable \"A\" is not NAME=VALUE"),
        (json!({"Env": ["=A"]}), "is not NAME=VALUE"),
        (json!({"Env": ["A=\u{0}"]}), "has a NUL in it"),
        (json!({"Cmd": ["a\u{0}b"]}), "has a NUL in it"),
        (json!({"User": "\u{0}"}), "has a NUL in it"),
        (json!({"WorkingDir": "srv"}), "the working directory \"srv\" is not absolute"),
        (json!({"Cmd": vec!["x"; 5000]}), "a list in it has 5000 entries"),
        (json!({"Labels": ["a"]}), "not one that is understood"),
    ] {
        let error = format!("{:#}", config(&run).unwrap_err());
        assert!(error.contains(complaint), "{run}: {error}");
    }
    for json in ["", "{}", "[]", "null", "{\"architecture\": \"amd64\", \"os\": \"linux\"}"] {
        assert!(ImageConfig::parse(json.as_bytes()).is_err());
    }
    let deep = "[".repeat(100_000);
    assert!(ImageConfig::parse(deep.as_bytes()).is_err() && Document::parse(deep.as_bytes()).is_err());
}

#[test]
fn an_index_is_bounded() {
    let entry = Descriptor::new(MANIFEST, Digest::of(b""), 1);
    let read = |count| Document::parse(&index_json(vec![entry.clone(); count]));
    assert!(matches!(read(1000), Ok(Document::Index(it)) if it.len() == 1000));
    assert!(read(1001).is_err());
    // One without a platform is taken as what is wanted; its configuration tells.
    assert_eq!(for_this_machine(std::slice::from_ref(&entry)).unwrap(), &entry);
    assert!(for_this_machine(&[entry.clone(), entry]).is_err());
}

/// Any bytes in place of some: an error or a document that reads the same once it is written.
#[test]
fn any_manifest_is_read_or_refused() {
    let manifest = Manifest {
        config: Descriptor::new(CONFIG, Digest::of(b"c"), 1),
        layers: vec![Descriptor::new(LAYER, Digest::of(b"l"), 2); 2],
    };
    let seed = manifest.to_json();
    let mut state = 1_u64;
    let mut random = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        usize::try_from(state >> 33).unwrap() % below
    };
    for _ in 0..20_000 {
        let mut json = seed.clone();
        for _ in 0..=random(3) {
            let at = random(json.len());
            json[at] = b"{}[],:\"0a-\\\x00\xff"[random(13)];
        }
        if let Ok(Document::Manifest(read)) = Document::parse(&json) {
            let again = Document::parse(&read.to_json());
            assert!(matches!(again, Ok(Document::Manifest(again)) if again == read));
        }
    }
}
