//! The keys under which everything is stored, made and read in this one place.
//!
//! ```text
//! /{kind}/{id}                        the user's part: names and spec
//! /vm/{id}/intent                     the controller's part
//! /vm/{id}/run/{incarnation}          the part of the agent that holds that incarnation
//! /placement/first                    the VM that had a place last before the others of its group
//! /template/{id}/version/{n}           what an earlier version of the template gives
//! /template/{id}/intent                the controller's part: how it is kept warm
//! /host/{id}/status                   the agent's part
//! /host/{id}/reservations             the controller's part
//! /host/{id}/contact                  the server's part: whether the host is heard
//! /host/{id}/intent                   the controller's part: how far its drain is
//! /image/{id}/status                  the part of the server that took the content
//! /migration/{id}/intent              the controller's part
//! /operation/{id}/status              the controller's part
//! /network/{id}/address/{address}     who holds an address
//! /index/{kind}/{project}/{name}      the id, so that names are unique
//! /request/{user}/{request id}        the answer that a repeat gets
//! /restored                           the store comes from a backup, and nothing is decided yet
//! /audit/{id}                         who wrote what
//! /server/{id}                        there while a server's run is
//! /signature/{image}                  what lets a server take an image's content, until the import has ended
//! /token/{hash}, /join/{hash}         credentials
//! /token-name/{name}                  the hash of the token of that name
//! ```

use std::net::IpAddr;

use uuid::Uuid;

use crate::{HostId, ImageId, Incarnation, Kind, MigrationId, NetworkId, OperationId, TemplateId, VmId};

/// The user's part of an object.
pub fn object(kind: Kind, id: Uuid) -> String {
    format!("/{kind}/{id}")
}

/// What all keys of a kind begin with.
pub fn kind_prefix(kind: Kind) -> String {
    format!("/{kind}/")
}

/// The controller's part of a VM.
pub fn vm_intent(id: VmId) -> String {
    format!("/vm/{id}/intent")
}

/// An agent's part of a VM. The number is padded, so that keys sort as numbers do.
pub fn vm_run(id: VmId, incarnation: Incarnation) -> String {
    format!("/vm/{id}/run/{:012}", incarnation.0)
}

/// A version of a template after which others came. The number is padded, so that keys sort as numbers do.
pub fn template_version(id: TemplateId, number: u64) -> String {
    format!("/template/{id}/version/{number:012}")
}

/// What the controller has done about a template.
pub fn template_intent(id: TemplateId) -> String {
    format!("/template/{id}/intent")
}

/// What a host reports of itself.
pub fn host_status(id: HostId) -> String {
    format!("/host/{id}/status")
}

/// What is reserved on a host.
pub fn host_reservations(id: HostId) -> String {
    format!("/host/{id}/reservations")
}

/// Whether a host is heard.
pub fn host_contact(id: HostId) -> String {
    format!("/host/{id}/contact")
}

/// What the controller has done about a host.
pub fn host_intent(id: HostId) -> String {
    format!("/host/{id}/intent")
}

/// What became of an image's content.
pub fn image_status(id: ImageId) -> String {
    format!("/image/{id}/status")
}

/// The controller's part of a migration.
pub fn migration_intent(id: MigrationId) -> String {
    format!("/migration/{id}/intent")
}

/// The controller's part of an operation.
pub fn operation_status(id: OperationId) -> String {
    format!("/operation/{id}/status")
}

/// Who holds an address of a network.
pub fn network_address(id: NetworkId, address: IpAddr) -> String {
    format!("/network/{id}/address/{address}")
}

/// What the keys of a network's addresses begin with.
pub fn network_addresses(id: NetworkId) -> String {
    format!("/network/{id}/address/")
}

/// The id that a name stands for.
pub fn name_index(kind: Kind, project: Option<&str>, name: &str) -> String {
    format!("/index/{kind}/{}/{name}", project.unwrap_or("-"))
}

/// What the keys of all kept answers begin with.
pub const REQUEST_PREFIX: &str = "/request/";

/// The answer to a request that carried an id.
pub fn request(user: &str, request: &str) -> String {
    format!("{REQUEST_PREFIX}{user}/{request}")
}

/// The VM that was placed last as the first of a group that shall be together. Two such choices exclude each other, since
/// each rests on there being no other.
pub const FIRST_OF_GROUP: &str = "/placement/first";

/// That the store was restored from a backup; there until it is known what the hosts run.
pub const RESTORED: &str = "/restored";

/// What all audit records' keys begin with.
pub const AUDIT_PREFIX: &str = "/audit/";

/// An audit record.
pub fn audit(id: Uuid) -> String {
    format!("{AUDIT_PREFIX}{id}")
}

/// What the keys of servers that run begin with.
pub const SERVER_PREFIX: &str = "/server/";

/// A run of a server: it is there while that is, since its lease keeps it.
pub fn server(id: Uuid) -> String {
    format!("{SERVER_PREFIX}{id}")
}

/// What the keys begin with whose values are secrets that a server has to know.
pub const SIGNATURE_PREFIX: &str = "/signature/";

/// The signature with which a server takes an image's content from an object store: no part of the image, since it is shown
/// to nobody.
pub fn image_signature(id: ImageId) -> String {
    format!("{SIGNATURE_PREFIX}{id}")
}

/// What all tokens' keys begin with.
pub const TOKEN_PREFIX: &str = "/token/";

/// A token, by the lower-case hexadecimal SHA-256 of its secret.
pub fn token(hash: &str) -> String {
    format!("{TOKEN_PREFIX}{hash}")
}

/// The hash of the token that has a name: names are unique while tokens count.
pub fn token_name(name: &str) -> String {
    format!("/token-name/{name}")
}

/// A token with which a host joins, by the hash of its secret.
pub fn join_token(hash: &str) -> String {
    format!("/join/{hash}")
}

/// Which part of an object a key holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// Names and spec.
    Object,
    /// The controller's.
    Intent,
    /// An earlier version.
    Version(u64),
    /// An agent's, of one incarnation.
    Run(Incarnation),
    /// Reported.
    Status,
    /// Reserved.
    Reservations,
    /// Heard or not.
    Contact,
    /// An address in use.
    Address(IpAddr),
}

/// Reads a key that belongs to an object; `None` for all others.
pub fn parse(key: &str) -> Option<(Kind, Uuid, Part)> {
    let mut words = key.strip_prefix('/')?.split('/');
    let kind = words.next()?.parse().ok()?;
    let id = words.next()?.parse().ok()?;
    let part = match (words.next(), words.next(), words.next()) {
        (None, ..) => Part::Object,
        (Some("intent"), None, _) => Part::Intent,
        (Some("status"), None, _) => Part::Status,
        (Some("reservations"), None, _) => Part::Reservations,
        (Some("contact"), None, _) => Part::Contact,
        (Some("run"), Some(number), None) => Part::Run(Incarnation(number.parse().ok()?)),
        (Some("version"), Some(number), None) => Part::Version(number.parse().ok()?),
        (Some("address"), Some(address), None) => Part::Address(address.parse().ok()?),
        _ => return None,
    };
    Some((kind, id, part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_made_is_read_back() {
        let id = Uuid::from_u128(7);
        for (key, kind, part) in [
            (object(Kind::Template, id), Kind::Template, Part::Object),
            (vm_intent(VmId(id)), Kind::Vm, Part::Intent),
            (
                vm_run(VmId(id), Incarnation(12)),
                Kind::Vm,
                Part::Run(Incarnation(12)),
            ),
            (
                template_version(TemplateId(id), 3),
                Kind::Template,
                Part::Version(3),
            ),
            (template_intent(TemplateId(id)), Kind::Template, Part::Intent),
            (host_status(HostId(id)), Kind::Host, Part::Status),
            (host_reservations(HostId(id)), Kind::Host, Part::Reservations),
            (host_contact(HostId(id)), Kind::Host, Part::Contact),
            (host_intent(HostId(id)), Kind::Host, Part::Intent),
            (image_status(ImageId(id)), Kind::Image, Part::Status),
            (migration_intent(MigrationId(id)), Kind::Migration, Part::Intent),
            (operation_status(OperationId(id)), Kind::Operation, Part::Status),
        ] {
            assert_eq!(parse(&key), Some((kind, id, part)), "{key}");
        }
    }

    #[test]
    fn what_is_no_objects_key_is_not_read() {
        for key in [
            "",
            "/",
            "/vm",
            "/vm/x",
            "/index/vm/default/web",
            "/audit/1",
            "/vm/00000000-0000-0000-0000-000000000007/x",
            &image_signature(ImageId(Uuid::from_u128(7))),
        ] {
            assert_eq!(parse(key), None, "{key}");
        }
    }
}
