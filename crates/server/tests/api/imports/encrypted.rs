//! Images from https:// servers with a CA of their own.

use std::fs;
use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd};

use super::sources::{Front, Nginx};
use super::{disk, has_failed, import, is_ready, nothing_is_left};
use crate::world::World;

/// A CA, and what it signs.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// Known to a server by a file.
    fn known(&self) -> server::Authorities {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), self.0.pem()).unwrap();
        server::Authorities::read([file.path()]).unwrap()
    }

    /// Writes a certificate for a name that is good until a year, and its key.
    fn sign(&self, dir: &Path, of: &str, name: &str, until: i32) {
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(until, 1, 1);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        fs::write(dir.join(format!("{of}.pem")), certificate.pem()).unwrap();
        fs::write(dir.join(format!("{of}.key")), key.serialize_pem()).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_is_looked_at_and_what_is_wrong_with_it_is_said() {
    let [known, unknown, imposter] = ["known", "unknown", "known"].map(Authority::new);
    let certificates = tempfile::tempdir().unwrap();
    let here = certificates.path();
    known.sign(here, "right", "localhost", 2060);
    known.sign(here, "address", "127.0.0.1", 2060);
    known.sign(here, "other", "elsewhere.example", 2060);
    known.sign(here, "late", "localhost", 2021);
    unknown.sign(here, "unknown", "localhost", 2060);
    imposter.sign(here, "imposter", "localhost", 2060);
    let disk = disk();
    let all = ["right", "address", "other", "late", "unknown", "imposter"];
    let world = World::trusting(known.known()).await;
    world.furnish().await;
    let (plain, mut servers) = (Nginx::start(&[("disk.raw", &disk)]).await, Vec::new());
    let moved = format!("location = /moved {{ return 302 {}; }}", plain.url("disk.raw"));
    for of in all {
        let certificate = format!(
            "listen unix:{0}/{of}.socket ssl; ssl_certificate {0}/{of}.pem; ssl_certificate_key {0}/{of}.key; {moved}",
            here.display()
        );
        let nginx = Nginx::with(&[("disk.raw", &disk)], &certificate).await;
        let address = nginx.through(&format!("{}/{of}.socket", here.display())).await;
        servers.push((of, nginx, address.port()));
    }
    let port = |of: &str| servers.iter().find(|(name, ..)| *name == of).unwrap().2;
    let url = |of: &str| format!("https://localhost:{}/disk.raw", port(of));
    is_ready(&import(&world, "right", &url("right")).await, &disk);
    let by_address = format!("https://127.0.0.1:{}/disk.raw", port("address"));
    is_ready(&import(&world, "address", &by_address).await, &disk);
    for (of, why) in [
        ("other", "it is not for localhost"),
        ("late", "its time is over"),
        ("unknown", "`sterna server --import-ca FILE`"),
        ("imposter", "`sterna server --import-ca FILE`"),
    ] {
        has_failed(&import(&world, of, &url(of)).await, "source-refused", why);
    }
    let moved = format!("https://localhost:{}/moved", port("right"));
    has_failed(
        &import(&world, "moved", &moved).await,
        "source-refused",
        "from https:// to http://",
    );
    // The other way is fine.
    let to = format!(
        "HTTP/1.1 302 Found\r\nLocation: {}\r\nContent-Length: 0\r\n\r\n",
        url("right")
    );
    let front = Front::saying(vec![to]).await;
    is_ready(&import(&world, "upgraded", &front.url("disk")).await, &disk);
    nothing_is_left(&world).await;
}

#[test]
fn a_file_without_a_ca_is_refused() {
    let file = tempfile::NamedTempFile::new().unwrap();
    for text in [
        "",
        "no certificate",
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    ] {
        fs::write(file.path(), text).unwrap();
        let why = server::Authorities::read([file.path()]).unwrap_err();
        assert!(why.contains(file.path().to_str().unwrap()), "{why}");
    }
    assert!(
        server::Authorities::read(["/nowhere/at/all"])
            .unwrap_err()
            .contains("No such file")
    );
}
