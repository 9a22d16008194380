//! Where settings come from, and what is said when they are wrong.

use super::*;

#[track_caller]
fn check(flag: Option<&str>, env: Option<&str>, file: &str, expected: &str) {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("warren.toml");
    std::fs::write(&config, file).unwrap();
    let place = PlaceFlags { config: Some(config), run_dir: None };
    let flags = NodeFlags { data_dir: flag.map(Into::into), ..NodeFlags::default() };
    let env = |key: &str| (key == "WARREN_DATA_DIR").then(|| env.map(str::to_owned)).flatten();
    let settings = place.resolve(&env).and_then(|place| place.node(&flags, &env));
    let got = match settings {
        Ok(settings) => settings.data_dir.display().to_string(),
        Err(failure) => {
            let hint = failure.hint.map(|h| format!(" ({h})")).unwrap_or_default();
            let message = failure.message.replace(&*dir.path().to_string_lossy(), "DIR");
            format!("{message}{hint}")
        }
    };
    assert_eq!(got, expected);
}

#[test]
fn order_of_sources() {
    check(None, None, "", "/var/lib/warren");
    check(None, None, "data_dir = \"/file\"", "/file");
    check(None, Some("/env"), "data_dir = \"/file\"", "/env");
    check(Some("/flag"), Some("/env"), "data_dir = \"/file\"", "/flag");
    check(None, Some(""), "data_dir = \"/file\"", "/file");
}

#[test]
fn bad_files() {
    check(
        None,
        None,
        "data-dir = \"/x\"",
        "DIR/warren.toml: there is no setting \"data-dir\" (did you mean data_dir?)",
    );
    check(
        None,
        None,
        "replicas = 3",
        "DIR/warren.toml: there is no setting \"replicas\" (settings are data_dir, run_dir, listen, advertise, admin, overlay_port, wireguard, profile, insecure_registry, managers, registry_mirror, image_gc, cdi_spec_dir, log_level, log_format)",
    );
    check(None, None, "data_dir = 3", "DIR/warren.toml: data_dir is not a string");
    check(
        None,
        None,
        "log_format = \"xml\"",
        "DIR/warren.toml: log_format: \"xml\" is not one of text, json",
    );
    check(
        None,
        None,
        "log_level = \"loud\"",
        "DIR/warren.toml: log_level: \"loud\" is not a log level (write one of off, error, warn, info, debug, or by module: info,warren_store=debug)",
    );
    check(None, None, "log_level = \"warn,warren_store=debug\"", "/var/lib/warren");
    check(Some(""), None, "", "--data-dir: the path is empty");
    check(
        None,
        None,
        "insecure_registry = \"a:5000\"",
        "DIR/warren.toml: insecure_registry is not a list of strings",
    );
    check(
        None,
        None,
        "insecure_registry = [\"http://a\"]",
        "DIR/warren.toml: insecure_registry: \"http://a\" is not a host (write registry.example.org or 10.0.0.1:5000, without a scheme)",
    );
    check(
        None,
        None,
        "registry_mirror = [\"docker.io=m\"]",
        "DIR/warren.toml: registry_mirror: \"docker.io=m\": relative URL without a base; write HOST=URL, such as docker.io=https://mirror.example.org",
    );
}

#[test]
fn what_a_node_was_told_when_it_was_made_holds() {
    let dir = tempfile::tempdir().unwrap();
    let text = |text: &str| Some(text.to_owned());
    let flags = |listen: Option<&str>| NodeFlags {
        data_dir: Some(dir.path().to_owned()),
        listen: listen.map(str::to_owned),
        ..NodeFlags::default()
    };
    let made = NodeFlags {
        advertise: text("m1.example"),
        profile: text("wan"),
        ..flags(Some("127.0.0.1:5000"))
    };
    let resolve = |flags: &NodeFlags, config: &str| {
        let path = dir.path().join("warren.toml");
        std::fs::write(&path, config).unwrap();
        let place = PlaceFlags { config: Some(path), run_dir: None };
        place.resolve(&|_| None).unwrap().node(flags, &|_| None)
    };
    let shown = |settings: NodeSettings| {
        let advertise = settings.advertise.map(|address| address.to_string());
        format!("{} {} {:?}", settings.listen, advertise.unwrap_or_default(), settings.profile)
    };
    let first = resolve(&made, "").unwrap();
    let rng = warren_base::rng::SeededRng::new(1);
    let identity = crate::identity::Identity::random(&rng, true);
    crate::identity::Identity { told: first.told, ..identity }.write(dir.path()).unwrap();
    let later = resolve(&flags(None), "").unwrap();
    assert_eq!(shown(later), "127.0.0.1:5000 m1.example:5000 Wan");
    let other = resolve(&flags(Some("127.0.0.2:99")), "profile = \"lan\"").unwrap();
    assert_eq!(shown(other), "127.0.0.2:99 m1.example:99 Lan");
}

#[test]
fn where_managers_are() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("warren.toml");
    std::fs::write(&config, "managers = [\"m1\", \"10.0.0.2:99\"]").unwrap();
    let place = PlaceFlags { config: Some(config), run_dir: None }.resolve(&|_| None).unwrap();
    let shown = |flags: &[&str]| {
        let flags: Vec<String> = flags.iter().map(|text| (*text).to_owned()).collect();
        let found = RunFlags { managers: flags, ..RunFlags::default() };
        match found.resolve(&place, &|_| None) {
            Ok(settings) => settings.managers.iter().map(Address::to_string).collect(),
            Err(failure) => vec![failure.to_string()],
        }
    };
    assert_eq!(shown(&[]), ["m1:2377", "10.0.0.2:99"]);
    assert_eq!(shown(&["m3"]), ["m3:2377"]);
    assert_eq!(
        shown(&["0.0.0.0"]),
        ["--managers: nobody can connect to 0.0.0.0; write the address that others know"]
    );
}

#[test]
fn sockets() {
    let none = |_: &str| None;
    let flags = PlaceFlags { config: None, run_dir: Some("/r".into()) };
    let place = flags.resolve(&none).unwrap();
    assert_eq!(place.socket, Path::new("/r/warren.sock"));
    assert_eq!(place.pid_file(), Path::new("/r/warren.pid"));
    let env = |key: &str| (key == "WARREN_SOCKET").then(|| "/s/x.sock".to_owned());
    let place = flags.resolve(&env).unwrap();
    assert_eq!(place.socket, Path::new("/s/x.sock"));
    assert_eq!(place.pid_file(), Path::new("/s/warren.pid"));
    let missing = PlaceFlags { config: Some("/none/such".into()), run_dir: None };
    assert_eq!(missing.resolve(&none).unwrap_err().exit.code(), 2);
}
