#![allow(clippy::unwrap_used, reason = "a panic is a test's way to fail")]

use super::*;
use crate::tls::NamedField;

const LEAST: &str = r#"
    data_dir = "data"
    [tls]
    cert = "server.pem"
    key = "/keys/server.key"
    client_ca = "ca.pem"
"#;

fn read(text: &str) -> Result<Config, ConfigError> {
    Config::from_toml(text, Path::new("/etc/m"))
}

/// `LEAST` with `text` as further tables, must be refused in words that hold `expected`.
fn refused(text: &str, expected: &str) {
    let e = read(&format!("{LEAST}\n{text}")).unwrap_err().to_string();
    assert!(e.contains(expected), "{e}");
}

#[test]
fn the_least_configuration_gets_the_defaults() {
    let config = read(LEAST).unwrap();
    let tls = TlsFiles::new("/etc/m/server.pem", "/keys/server.key", "/etc/m/ca.pem");
    assert_eq!(
        config,
        Config::new("127.0.0.1:7440".parse().unwrap(), "/etc/m/data", tls)
    );
}

#[test]
fn every_key_reaches_its_place() {
    let config = read(
        r#"
        listen = "[::1]:1"
        data_dir = "/d"
        admins = ["spiffe://d/ops/root"]
        [tls]
        cert = "c"
        key = "k"
        client_ca = "a"
        crl = ["r", "/s"]
        [transport]
        mtu = 6500
        max_connections = 7
        handshakes_per_address = 8
        [storage]
        cache_mib = 9
        hot_mib = 200
        tail_mib = 10
        [plugins]
        instances = 11
        memory_mib = 12
        call_cpu_ms = 13
        init_cpu_ms = 14
        cpu_share = 0.5
        [backup]
        target = "s3://b/c"
        mib_per_s = 15
        [metrics]
        listen = "127.0.0.1:9464"
        "#,
    )
    .unwrap();
    assert_eq!(config.listen, "[::1]:1".parse().unwrap());
    assert_eq!(config.admins, ["spiffe://d/ops/root".parse().unwrap()]);
    let lists = [PathBuf::from("/etc/m/r"), PathBuf::from("/s")];
    assert_eq!(config.tls.revocation_lists, lists);
    let one = read(&format!("{LEAST}\ncrl = \"r\"")).unwrap();
    assert_eq!(one.tls.revocation_lists, lists[..1]);
    refused("crl = 3", "a file's name, or a list of them");
    refused("crl = \"\"", "tls.crl");
    assert_eq!(
        config.transport,
        TransportConfig {
            mtu: 6500,
            max_connections: 7,
            handshakes_per_address: 8
        }
    );
    assert_eq!(
        config.storage,
        StorageConfig {
            cache_bytes: 9 << 20,
            hot_bytes: 200 << 20,
            tail_bytes: 10 << 20
        }
    );
    let PluginsConfig { engine, limits } = config.plugins;
    assert_eq!(engine.instances, 11);
    assert_eq!(
        (limits.memory_bytes, limits.high_water_bytes),
        (12 << 20, 9 << 20)
    );
    assert_eq!((limits.call_cpu, limits.init_cpu), (millis(13), millis(14)));
    assert!((limits.cpu_share - 0.5).abs() < f64::EPSILON);
    let backup = BackupConfig {
        target: "s3://b/c".into(),
        bytes_per_second: 15 << 20,
    };
    assert_eq!(config.backup, Some(backup));
    let metrics = MetricsConfig::new("127.0.0.1:9464".parse().unwrap());
    assert_eq!(config.metrics, Some(metrics));
}

#[test]
fn metrics_are_off_unless_there_is_an_address_for_them() {
    assert_eq!(read(LEAST).unwrap().metrics, None);
    refused("[metrics]", "listen");
    refused("[metrics]\nlisten = \"localhost:9464\"", "metrics.listen");
    refused("[metrics]\nlisten = \"127.0.0.1\"", "127.0.0.1:9464");
    refused("[metrics]\nlisten = \"[::1]:1\"\nport = 2", "port");
}

#[test]
fn backups_go_to_a_directory_beside_the_file_or_to_a_known_kind_of_place() {
    let read = |text: &str| read(&format!("{LEAST}\n[backup]\n{text}"));
    let config = read("target = \"backups\"").unwrap();
    assert_eq!(config.backup, Some(BackupConfig::new("/etc/m/backups")));
    refused("[backup]\ntarget = \"http://host\"", "backup.target");
    refused("[backup]\ntarget = \"\"", "backup.target");
    refused("[backup]", "target");
    refused(
        "[backup]\ntarget = \"/b\"\nmib_per_s = 0",
        "backup.mib_per_s",
    );
}

#[test]
fn one_field_says_who_a_client_is() {
    let of = |text: &str| read(&format!("{LEAST}\n[identity]\n{text}")).map(|c| c.tls.identity);
    assert_eq!(of("").unwrap(), Identity::default());
    let uri = Identity::Uri {
        trust_domain: Some("example.org".into()),
    };
    assert_eq!(of("trust_domain = \"example.org\"").unwrap(), uri);
    let text = "field = \"uri\"\ntrust_domain = \"example.org\"";
    assert_eq!(of(text).unwrap(), uri);
    for (field, named) in [
        ("dns", NamedField::Dns),
        ("email", NamedField::Email),
        ("cn", NamedField::CommonName),
    ] {
        let text = format!("field = \"{field}\"\nsuffix = \"c.d\"\ntrust_domain = \"d\"");
        let expected = Identity::Named {
            field: named,
            suffix: "c.d".into(),
            trust_domain: "d".into(),
        };
        assert_eq!(of(&text).unwrap(), expected);
        for part in ["suffix", "trust_domain"] {
            let text = text.replace(part, "#");
            refused(&format!("[identity]\n{text}"), &format!("identity.{part}"));
        }
    }
    refused("[identity]\nfield = \"any\"", "any");
    refused("[identity]\nsuffix = \"d\"", "identity.suffix");
    for bad in ["", "a/b", "A", "d."] {
        let text = format!("[identity]\ntrust_domain = \"{bad}\"");
        refused(&text, "identity.trust_domain");
    }
}

#[test]
fn an_unknown_key_is_refused_by_name() {
    refused("[transport]\nmut = 1452", "mut");
    refused("[quota]", "quota");
}

#[test]
fn a_value_out_of_range_is_refused_with_its_key_and_range() {
    refused(
        "[transport]\nmtu = 9000",
        "transport.mtu = 9000, but 1200 to 6500",
    );
    refused(
        "[transport]\nmax_connections = 0",
        "transport.max_connections",
    );
    refused(
        "[transport]\nhandshakes_per_address = 0",
        "transport.handshakes_per_address",
    );
    refused("[storage]\ntail_mib = 0", "storage.tail_mib");
    refused("[storage]\nhot_mib = 127", "storage.hot_mib");
    refused(
        "[storage]\ncache_mib = 18446744073709551615",
        "storage.cache_mib",
    );
    refused("[plugins]\ninstances = 1000000", "plugins.instances");
    refused("[plugins]\nmemory_mib = 100000", "plugins.memory_mib");
    refused("[plugins]\ncall_cpu_ms = 0", "plugins.call_cpu_ms");
    refused("[plugins]\ncpu_share = 1.5", "plugins.cpu_share");
}

#[test]
fn what_is_not_an_address_or_a_principal_is_refused() {
    let e = read(&format!("listen = \"localhost\"\n{LEAST}"))
        .unwrap_err()
        .to_string();
    assert!(e.contains("listen") && e.contains("0.0.0.0:7440"), "{e}");
    let e = read(&format!("admins = [\"root\"]\n{LEAST}"))
        .unwrap_err()
        .to_string();
    assert!(e.contains("admins") && e.contains("spiffe://"), "{e}");
}

#[test]
fn a_file_is_named_in_its_errors() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("millstream.toml");
    let e = Config::load(&file).unwrap_err().to_string();
    assert!(
        e.contains("cannot read") && e.contains("millstream.toml"),
        "{e}"
    );
    std::fs::write(&file, "data_dir = 3").unwrap();
    let e = Config::load(&file).unwrap_err().to_string();
    assert!(
        e.contains("millstream.toml") && e.contains("data_dir"),
        "{e}"
    );
    std::fs::write(&file, LEAST).unwrap();
    let config = Config::load(&file).unwrap();
    assert_eq!(config.data_dir, dir.path().join("data"));
    assert_eq!(config.source, Some(file));
}

#[test]
fn what_cannot_change_while_the_broker_runs_is_named() {
    let old = read(LEAST).unwrap();
    let same = "[identity]\ntrust_domain = \"d\"\n[transport]\nmax_connections = 3";
    let new = read(&format!("{LEAST}\n{same}")).unwrap();
    assert_eq!(old.fixed_differences(&new), Vec::<&str>::new());
    let fixed = "[transport]\nmtu = 1300\n[storage]\ntail_mib = 7";
    let new = read(&format!("admins = [\"spiffe://d/t/n\"]\n{LEAST}\n{fixed}")).unwrap();
    assert_eq!(
        old.fixed_differences(&new),
        ["admins", "transport.mtu", "storage"]
    );
}
