//! The TLS of a migration: the QOM objects that each side needs, and the files they read.
//!
//! *Owns:* ids, file names, the cipher choice and the admission of one named source. *Does not know:* how certificates are
//! made. Everything here is pure.
//! *Start here:* [`source_objects`] and [`target_objects`]; add them with [`Qmp::object_add`](crate::qmp::Qmp::object_add)
//! before the parameters are set, and delete them by [`OBJECT_IDS`] in that order before the next attempt.
//!
//! The directory of a host's credentials holds `ca-cert.pem`, the same certificate as `client-cert.pem` and
//! `server-cert.pem`, its key as `client-key.pem` and `server-key.pem`, and [`DH_PARAMETERS_FILE`]. QEMU refuses a
//! certificate whose key usage lacks keyEncipherment.

use serde_json::{Value, json};

/// The id of the credentials object, on either side.
pub const CREDENTIALS_ID: &str = "migration-tls";
/// The id of the authorization object, on the target.
pub const AUTHORIZATION_ID: &str = "migration-authz";
/// The objects in the order in which to delete them; the second exists on a target only.
pub const OBJECT_IDS: [&str; 2] = [CREDENTIALS_ID, AUTHORIZATION_ID];

/// The file of [`DH_PARAMETERS_PEM`]. Without it QEMU makes parameters at each start, for up to two seconds.
pub const DH_PARAMETERS_FILE: &str = "dh-params.pem";
/// The group ffdhe2048 of RFC 7919, appendix A.1.
pub const DH_PARAMETERS_PEM: &str = "\
-----BEGIN DH PARAMETERS-----
MIIBCAKCAQEA//////////+t+FRYortKmq/cViAnPTzx2LnFg84tNpWp4TZBFGQz
+8yTnc4kmz75fS/jY2MMddj2gbICrsRhetPfHtXV/WVhJDP1H18GbtCFY2VVPe0a
87VXE15/V8k1mE8McODmi3fipona8+/och3xWKE2rec1MKzKT0g6eXq8CrGCsyT7
YdEIqUuyyOP7uWrat2DX9GgdT0Kj3jlN9K5W7edjcrsZCwenyO4KbXCeAvzhzffi
7MA0BM0oNC9hkXL+nOmFg/+OTxIy7vKBg8P+OxtMb61zO7X8vC7CIAXFjvGDfRaD
ssbzSibBsu/6iGtCOGEoXJf//////////wIBAg==
-----END DH PARAMETERS-----
";

/// TLS 1.3 with AES-GCM, which has hardware support wherever migrations are fast.
const PRIORITY: &str = "NORMAL:-VERS-ALL:+VERS-TLS1.3:-CIPHER-ALL:+AES-128-GCM:+AES-256-GCM";

/// What [`crate::migration_settings::parameters`] sets; an empty text is "none".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsParameters {
    /// `tls-creds`.
    pub credentials_id: String,
    /// `tls-hostname`: the name that the target's certificate must bear.
    pub hostname: String,
    /// `tls-authz`: who may connect.
    pub authorization_id: String,
}

/// The parameters of a source that sends to the host named in the certificate as `target_name` (a DNS name of it).
pub fn source_parameters(target_name: &str) -> TlsParameters {
    TlsParameters {
        credentials_id: CREDENTIALS_ID.to_owned(),
        hostname: target_name.to_owned(),
        authorization_id: String::new(),
    }
}

/// The parameters of a target.
pub fn target_parameters() -> TlsParameters {
    TlsParameters {
        credentials_id: CREDENTIALS_ID.to_owned(),
        hostname: String::new(),
        authorization_id: AUTHORIZATION_ID.to_owned(),
    }
}

/// The objects of a source whose credentials are in `directory`.
pub fn source_objects(directory: &str) -> Vec<Value> {
    vec![credentials("client", directory)]
}

/// The objects of a target that admits nobody but `source_distinguished_name`, in the form of RFC 4514, such as `CN=h1`.
pub fn target_objects(directory: &str, source_distinguished_name: &str) -> Vec<Value> {
    let authorization = json!({
        "qom-type": "authz-simple",
        "id": AUTHORIZATION_ID,
        "identity": source_distinguished_name,
    });
    vec![credentials("server", directory), authorization]
}

fn credentials(endpoint: &str, directory: &str) -> Value {
    json!({
        "qom-type": "tls-creds-x509",
        "id": CREDENTIALS_ID,
        "endpoint": endpoint,
        "dir": directory,
        "verify-peer": true,
        "priority": PRIORITY,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::Engine;

    #[test]
    fn the_dh_parameters_are_the_group_of_rfc_7919() {
        let lines: Vec<&str> = DH_PARAMETERS_PEM.lines().collect();
        let body = lines[1..lines.len() - 1].concat();
        let der = base64::engine::general_purpose::STANDARD.decode(body).unwrap();
        // SEQUENCE { INTEGER p (257 bytes with its sign), INTEGER 2 }
        assert_eq!(der[..8], [0x30, 0x82, 0x01, 0x08, 0x02, 0x82, 0x01, 0x01]);
        let p = &der[9..9 + 256];
        assert_eq!(p[..8], [0xff; 8]);
        assert_eq!(p[248..], [0xff; 8]);
        assert_eq!(p[8..16], 0xADF8_5458_A2BB_4A9A_u64.to_be_bytes());
        assert_eq!(p[240..248], 0x886B_4238_6128_5C97_u64.to_be_bytes());
        assert_eq!(der[265..], [0x02, 0x01, 0x02]);
    }
}
