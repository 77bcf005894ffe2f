//! The Debian package, as far as it can be looked at without building it: its files are there, its units can be read, and
//! the program takes the command lines in them. `make deb` looks at the package itself.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const UNITS: [&str; 2] = ["sterna-server", "sterna-agent"];

fn packaging(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../packaging")
        .join(name)
}

/// What follows `KEY=` in a unit, or in the settings that it reads.
fn value(text: &str, key: &str) -> String {
    let lines = text
        .lines()
        .filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    let values: Vec<&str> = lines.collect();
    assert_eq!(values.len(), 1, "{key} in {text}");
    values[0].trim_matches('"').to_owned()
}

#[test]
fn every_file_of_the_package_is_there() {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    let manifest = fs::read_to_string(own.join("Cargo.toml")).unwrap();
    let (_, deb) = manifest.split_once("[package.metadata.deb]").unwrap();
    // What is below target/ is made by `make deb` first.
    let is_kept = |text: &&str| text.starts_with("../../") && !text.starts_with("../../target/");
    let paths: Vec<&str> = deb.split('"').filter(is_kept).collect();
    assert!(paths.len() > 8, "{paths:?}");
    for path in paths {
        assert!(
            own.join(path).exists(),
            "{path} is named in Cargo.toml and is not there"
        );
    }
    for script in ["debian/postinst", "debian/prerm", "debian/postrm", "sterna-join"] {
        let path = packaging(script);
        let read = Command::new("sh").arg("-n").arg(&path).status().unwrap();
        assert!(read.success(), "{script} cannot be read");
    }
}

/// With the settings as they come, and with those that they give as examples.
#[test]
fn the_program_takes_the_command_lines_of_the_units() {
    for unit in UNITS {
        let text = fs::read_to_string(packaging(&format!("{unit}.service"))).unwrap();
        let line = value(&text, "ExecStart");
        let settings = value(&text, "EnvironmentFile");
        let settings = Path::new(&settings)
            .file_name()
            .unwrap()
            .to_str()
            .unwrap()
            .to_owned();
        let settings = fs::read_to_string(packaging(&settings)).unwrap();
        let examples = settings.lines().filter(|line| line.contains("OPTIONS="));
        for example in examples {
            let options = value(example.trim_start_matches(['#', ' ']), "OPTIONS");
            let line = line.replace("$OPTIONS", &options);
            let mut words = line.split_whitespace();
            assert_eq!(words.next(), Some("/usr/bin/sterna"), "{line}");
            let asked = Command::new(env!("CARGO_BIN_EXE_sterna"))
                .args(words)
                .arg("--help")
                .output()
                .unwrap();
            assert!(
                asked.status.success(),
                "{line}: {}",
                String::from_utf8_lossy(&asked.stderr)
            );
        }
    }
}

/// Where there is systemd's own reader.
#[test]
fn systemd_reads_the_units() {
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        eprintln!("systemd-analyze is not there: nothing was checked");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for unit in UNITS {
        let name = format!("{unit}.service");
        let text = fs::read_to_string(packaging(&name)).unwrap();
        let path = dir.path().join(&name);
        fs::write(
            &path,
            text.replace("/usr/bin/sterna", env!("CARGO_BIN_EXE_sterna")),
        )
        .unwrap();
        let read = Command::new("systemd-analyze")
            .args(["verify", "--man=no"])
            .arg(&path)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&read.stderr);
        assert!(read.status.success() && !said.contains(&name), "{said}");
    }
}

/// A restart of the agent disturbs no guest, and a guest that is killed does not stop the agent.
#[test]
fn guests_outlive_the_agents_unit() {
    let text = fs::read_to_string(packaging("sterna-agent.service")).unwrap();
    assert_eq!(value(&text, "KillMode"), "process");
    assert_eq!(value(&text, "OOMPolicy"), "continue");
}

/// QEMU's `-sandbox` is refused where the call that it is made with is.
#[test]
fn guests_may_shut_themselves_in() {
    let text = fs::read_to_string(packaging("sterna-agent.service")).unwrap();
    assert!(value(&text, "SystemCallFilter").contains("seccomp"));
}
