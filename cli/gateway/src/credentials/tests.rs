//! Which secret counts, and what it becomes.

use super::*;

fn entry(service: &str, sandbox: Option<&str>, value: &str) -> Entry {
    let origin = Origin::Value(value.into());
    Entry { service: service.into(), sandbox: sandbox.map(str::to_owned), origin, custom: None }
}

fn custom(service: &str, host: &str, port: u16) -> Entry {
    let custom = Custom {
        hosts: vec![(host.into(), port)],
        header: "X-Thing".into(),
        format: "thing=%s".into(),
        variables: vec!["THING".into()],
    };
    Entry { custom: Some(custom), ..entry(service, None, "custom-secret") }
}

fn load(stored: &[Entry], sandbox: &str, lent: &[(&str, &str)]) -> Secrets {
    let settings = tempfile::tempdir().unwrap();
    Store::change(settings.path(), |secrets| secrets.extend_from_slice(stored)).unwrap();
    let lent: Vec<_> = lent
        .iter()
        .map(|(service, secret)| Lent { service: (*service).into(), secret: (*secret).into() })
        .collect();
    Secrets::load(settings.path(), sandbox, &lent).unwrap()
}

/// Name and value of the header for a host.
fn header(secrets: &Secrets, host: &str) -> Option<(String, String)> {
    let injection = secrets.for_host(host, 443)?;
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let (value, _) = runtime.block_on(injection.value()).unwrap();
    assert!(value.is_sensitive());
    Some((injection.header.to_string(), value.to_str().unwrap().to_owned()))
}

fn pair(name: &str, value: &str) -> Option<(String, String)> {
    Some((name.to_owned(), value.to_owned()))
}

#[test]
fn the_nearest_secret_counts() {
    let stored =
        [entry("openai", None, "all"), entry("openai", Some("box"), "own"), entry("openai", Some("b"), "no")];
    let host = "api.openai.com";
    let bearer = |secret: &str| pair("authorization", &format!("Bearer {secret}"));
    assert_eq!(header(&load(&stored, "box", &[("openai", "lent")]), host), bearer("own"));
    assert_eq!(header(&load(&stored, "other", &[("openai", "lent")]), host), bearer("all"));
    assert_eq!(header(&load(&[], "box", &[("openai", "lent")]), host), bearer("lent"));
    assert_eq!(header(&load(&[], "box", &[]), host), None);
    assert!(load(&[], "box", &[]).is_empty());
}

#[test]
fn each_service_is_told_in_its_own_way() {
    let stored = [
        entry("anthropic", None, "sk-ant-api03-k"),
        entry("github", None, "gho_t"),
        entry("google", None, "AIza"),
        custom("mine", "thing.example", 443),
    ];
    let secrets = load(&stored, "box", &[]);
    assert_eq!(header(&secrets, "api.anthropic.com"), pair("x-api-key", "sk-ant-api03-k"));
    assert_eq!(header(&secrets, "api.github.com"), pair("authorization", "Bearer gho_t"));
    let basic = format!("Basic {}", STANDARD.encode("x-access-token:gho_t"));
    assert_eq!(header(&secrets, "github.com"), pair("authorization", &basic));
    assert_eq!(header(&secrets, "generativelanguage.googleapis.com"), pair("x-goog-api-key", "AIza"));
    assert_eq!(header(&secrets, "thing.example"), pair("x-thing", "thing=custom-secret"));
    for other in ["example", "evil-api.github.com", "anthropic.com", "api.anthropic.com.evil.example"] {
        assert!(secrets.for_host(other, 443).is_none(), "{other}");
    }
    assert!(
        secrets.for_host("api.anthropic.com", 80).is_none()
            && secrets.for_host("api.anthropic.com", 8443).is_none()
    );
    let guest: Vec<_> = secrets.guest().iter().map(|(name, value)| format!("{name}={value}")).collect();
    assert_eq!(
        guest,
        [
            "ANTHROPIC_API_KEY=sk-ant-api03-coracle-placeholder",
            "GH_TOKEN=gho_CoraclePlaceholder",
            "GITHUB_TOKEN=gho_CoraclePlaceholder",
            "GEMINI_API_KEY=AIzaSy-coracle-placeholder",
            "THING=coracle-placeholder",
        ]
    );
    let login = load(&[entry("anthropic", None, "sk-ant-oat01-t")], "box", &[]);
    assert_eq!(header(&login, "api.anthropic.com"), pair("authorization", "Bearer sk-ant-oat01-t"));
    assert_eq!(login.guest()[0].0, "CLAUDE_CODE_OAUTH_TOKEN");
}

#[test]
fn nothing_of_them_is_printed() {
    let secrets = load(&[entry("anthropic", None, "s3cret-s3cret")], "box", &[]);
    let injection = secrets.for_host("api.anthropic.com", 443).unwrap();
    let printed = format!("{secrets:?} {injection:?}");
    assert_eq!(printed, "Secrets Injection(anthropic, api.anthropic.com:443)");
}

#[test]
fn secrets_end_with_who_loaded_them() {
    let secrets = load(&[entry("anthropic", None, "s3cret-s3cret")], "box", &[]);
    let injection = Arc::clone(secrets.for_host("api.anthropic.com", 443).unwrap());
    assert!(injection.lives.has_changed().is_ok());
    drop(secrets);
    assert!(injection.lives.has_changed().is_err());
}

#[test]
fn what_is_not_understood_is_no_secret() {
    let settings = tempfile::tempdir().unwrap();
    for bad in [
        entry("unknown", None, "s3cret"),
        Entry {
            custom: Some(Custom { header: "a b".into(), ..custom("x", "h", 1).custom.unwrap() }),
            ..entry("x", None, "s3cret")
        },
    ] {
        Store::change(settings.path(), |secrets| *secrets = vec![bad]).unwrap();
        let error = format!("{:#}", Secrets::load(settings.path(), "box", &[]).unwrap_err());
        assert!(!error.contains("s3cret"), "{error}");
    }
}
