//! Every code that a problem can have, with what it means and what helps. `docs/problems.md` and the server's own pages
//! show this table; a test holds the server's sources to it.

/// A kind of problem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Code {
    /// The HTTP status that it usually comes with. What only a request's body names is 422 where a path's is 404.
    pub status: u16,
    /// Stable, for programs.
    pub code: &'static str,
    /// What it means.
    pub means: &'static str,
    /// What helps.
    pub remedy: &'static str,
}

const fn code(status: u16, code: &'static str, means: &'static str, remedy: &'static str) -> Code {
    Code {
        status,
        code,
        means,
        remedy,
    }
}

/// What is known of a code.
pub(super) fn find(code: &str) -> Option<&'static Code> {
    CODES.iter().find(|known| known.code == code)
}

/// All codes, by status.
#[rustfmt::skip]
pub const CODES: &[Code] = &[
    code(400, "bad-json", "The body is not JSON.", "Send JSON as the document of the interface describes it."),
    code(400, "bad-path", "The path is not text.", "Escape names in paths as UTF-8."),
    code(400, "bad-query", "What stands behind the `?` is not understood.", "Look at the operation's parameters."),
    code(400, "body-broken", "The body ended early.", "Send the request again."),
    code(400, "upload-broken", "The content ended early.", "Send the rest: what has come is kept."),
    code(401, "bad-join-token", "The join token is unknown, used or expired.", "Make a new one with `sterna host token`."),
    code(401, "bad-token", "The token is unknown or has expired.", "Take the one in the server's data directory, or ask for a new one."),
    code(401, "no-certificate", "An agent's route was asked without a host's certificate.", "Join with a token first."),
    code(401, "no-token", "The request shows no token.", "Send `Authorization: Bearer TOKEN`."),
    code(403, "certificate-replaced", "The host has joined again since, and has another certificate.", "Join again."),
    code(403, "host-removed", "The host was removed from the cloud.", "Join again."),
    code(403, "not-admin", "It is for administrators.", "Show an administrator's token."),
    code(403, "not-an-agent", "The certificate is not one of a host.", "Show the one that the agent got when it joined."),
    code(403, "read-only-token", "A token of the role reader changes nothing and uses no console.", "Show an operator's token."),
    code(404, "gone", "The object went while the request was under way.", "Nothing: it is not there any more."),
    code(404, "no-call", "Nobody waits for an answer to this call.", "Nothing: whoever called has given up."),
    code(404, "no-content", "The image has no such content.", "Import the image again."),
    code(404, "no-route", "There is nothing at this path.", "Look at `/docs`."),
    code(404, "no-such-action", "There is no such action on this kind.", "Look at the kind's actions in `/docs`."),
    code(404, "not-found", "What is named is not there.", "List the kind, and check the name; create it first if it should be there."),
    code(405, "hosts-join", "Hosts are not created.", "Make a token with `sterna host token`, and let the host's agent join with it."),
    code(405, "no-method", "The path does not take this method.", "Look at `/docs`."),
    code(405, "read-only", "Objects of this kind are records of what happens.", "Nothing: they are not written by users."),
    code(409, "address-taken", "Another VM has the address.", "Take another one, or leave it out to get a free one."),
    code(409, "already-migrating", "The VM moves already.", "Wait for the move's end, or cancel it."),
    code(409, "backup-under-way", "A backup is being made.", "Wait until it has ended."),
    code(409, "being-deleted", "The object is being deleted.", "Wait until it is gone."),
    code(409, "busy", "Others changed the same objects each time this was tried.", "Try again."),
    code(409, "cancelled", "It was cancelled already.", "Wait for its end."),
    code(409, "clone-source-empty", "The VM has no disk yet that could be copied.", "Start it first, or copy another one."),
    code(409, "default-profile", "The profile is one of the default family, which is a part of the release.", "Create one of your own with its name: it takes its place."),
    code(409, "guest-not-ready", "The guest's agent has not answered yet.", "Wait until the VM is ready; a guest without qemu-guest-agent cannot be told anything."),
    code(409, "host-dead", "The host was declared dead.", "Let it join again."),
    code(409, "host-holds-vms", "VMs hold something on the host.", "Drain the host, or delete the VMs that the answer names."),
    code(409, "host-is-heard", "The host is not silent, so it is not dead.", "Switch it off first."),
    code(409, "host-silent", "The host is silent.", "Wait until it is heard, or switch it off and `confirm-dead` it."),
    code(409, "host-twice", "Another machine, or another start of this one, speaks for the host.", "Wait, if this machine was just restarted: it is taken when the other has been silent. Make a copied machine a host of its own."),
    code(409, "hosts-silent", "Hosts have not said what they run since the store was restored.", "Start their agents; declare those dead that never come back."),
    code(409, "image-differs", "The image has another content than the document says.", "Import that content under another name."),
    code(409, "image-has-content", "The image has its content, which never changes.", "Create another image."),
    code(409, "image-not-ready", "The image has no content yet.", "Send its content, or wait until it has come."),
    code(409, "image-not-there", "A document describes an image that is not there.", "Import the image first."),
    code(409, "in-use", "Others need the object.", "Delete or change those that the answer names."),
    code(409, "is-over", "It has ended already.", "Nothing: read how it ended."),
    code(409, "is-there-already", "The VM is on that host.", "Name another host."),
    code(409, "machine-taken", "The machine that would join is a host already.", "Give a copied machine an id of its own; let go of the host that an old one was."),
    code(409, "name-taken", "There is an object of this kind and name.", "Take another name, or delete that one."),
    code(409, "network-full", "All addresses of the network are taken.", "Delete VMs, or make another network."),
    code(409, "newest-version", "The newest version of a template is what it gives.", "Change the template first, or delete all of it."),
    code(409, "no-console", "The VM has no console now.", "Start the VM, or ask for the console's log."),
    code(409, "no-drive", "The VM has no drive for installation media.", "Shut the VM down; then it is given one with its first medium."),
    code(409, "not-copied-here", "An agent sends an image's content that it is not told to copy.", "Nothing: it tries again, or is told not to."),
    code(409, "not-running", "Only what runs can be moved so.", "Start or resume the VM first."),
    code(409, "request-id-reused", "The request id was used for another request.", "Take a new one."),
    code(409, "runs-unknown", "Hosts run VMs that the restored store does not know.", "Look at them with `sterna store status`; end them with `sterna store resume --end-unknown`."),
    code(409, "stale-revision", "The object was changed after the revision that was expected.", "Read it again, and decide again."),
    code(409, "store-put-back", "The store's database is older than what a host was told by it.", "Stop this server if another one runs on a later copy; else put the database back by `sterna store restore`."),
    code(409, "template-exists", "There is a template of that name already.", "Refresh it, or take another name."),
    code(409, "template-not-warm", "The template has no kept memory to start from.", "Warm it first, or let the VM boot."),
    code(409, "too-many-tokens", "There are as many tokens as may be.", "Delete those that are not needed."),
    code(409, "too-many-versions", "The template has as many versions as there can be.", "Delete one that is not needed: `sterna template delete NAME@N`."),
    code(409, "under-way", "Something is under way with the object.", "Wait for its end, or cancel it."),
    code(409, "upload-differs", "What was sent before is not the begin of this content.", "Send it from its begin."),
    code(409, "upload-overtaken", "Somebody else began to send the image's content.", "Wait for the end of that."),
    code(409, "vm-being-copied", "Other VMs wait for a copy of the VM's disk.", "Wait until they have their disks, or delete them first."),
    code(409, "vm-builds-template", "The VM is there for a template that is made of it, and is deleted afterwards.", "Wait for its end, or delete it to give that up."),
    code(409, "vm-has-no-disk", "The VM has no disk yet that could be made whole.", "Start it first."),
    code(409, "vm-is-warm-form", "The VM is the warm form of a template, which is only read.", "Make a VM of the template, or delete this one."),
    code(409, "vni-taken", "Another network has the identifier.", "Take another one, or leave it out to get a free one."),
    code(409, "warm-form-in-use", "The disks of other VMs lie over the one of this warm form.", "Delete those VMs first."),
    code(409, "wrong-phase", "The VM's phase does not allow the action.", "Look at the VM's `next_commands`."),
    code(410, "compacted", "What happened so long ago is no longer kept.", "List again, and go on from the list's revision."),
    code(413, "too-large", "The request is larger than is taken.", "Send less at once."),
    code(422, "address-not-allowed", "The image's source is at an address that images are not taken from.", "Give a source elsewhere, or start the server with `--import-allow`."),
    code(422, "address-not-in-network", "The address is none that the network gives out.", "Take one inside the network, not its first or last."),
    code(422, "bad-certificate-request", "The request for a certificate cannot be signed.", "Let the agent make its keys anew."),
    code(422, "build-has-its-sources", "A VM that a template is made of is given what it begins with.", "Leave the field out, or leave `builds` out."),
    code(422, "build-needs-source", "It is not said what a new template begins with.", "Name a VM, or refresh a template that is there."),
    code(422, "clone-has-its-sources", "A copy of a VM is given what its source decides.", "Leave the field out, or leave `clone_of` out."),
    code(422, "confirmed-dead-by-action", "`confirmed_dead` is set by an action only.", "Use the action `confirm-dead`."),
    code(422, "copy-has-its-source", "An image that is a copy of a VM's disk is given another source.", "Leave `source` and `expected_sha256` out, or leave `from_vm` out."),
    code(422, "digest-differs", "The content does not have the digest that was expected.", "Send the right file, or correct `expected_sha256`."),
    code(422, "digest-not-listed", "The list of digests has no line for the file.", "Give the right list, or `expected_sha256`."),
    code(422, "disk-size-missing", "Without an image the disk is blank, and its size is not given.", "Give `disk_bytes`."),
    code(422, "disk-too-small", "The disk is smaller than its image, or than the disk that it is a copy of.", "Give it at least that size."),
    code(422, "draining-by-action", "`draining` is set by an action only.", "Use the actions `drain` and `undrain`."),
    code(422, "empty-rule", "A placement rule names nothing.", "Name VMs, hosts or labels, or leave the rule out."),
    code(422, "expires-in-the-past", "The token would have expired already.", "Give a time in the future."),
    code(422, "guest-too-large", "What the guest is told takes more than the store can keep.", "Have the user data fetch what is large."),
    code(422, "image-is-medium", "The image is an installation medium, and no disk's content.", "Give it as `cdrom`, with `disk_bytes` for a blank disk."),
    code(422, "image-is-no-medium", "The image is a disk's content, and no installation medium.", "Give it as `image`, or import an ISO 9660 file."),
    code(422, "image-missing", "Neither the VM nor its template has an image, nor is there a medium to install from.", "Give a template, an image, or a `cdrom` and `disk_bytes`."),
    code(422, "immutable", "The field can be chosen once only.", "Create another object."),
    code(422, "invalid-body", "The body does not have the form that is described.", "Look at the operation's body in `/docs`."),
    code(422, "invalid-boot", "The order of booting cannot be kept.", "Name each device once, the first choice first."),
    code(422, "invalid-cidr", "The network's range cannot be used.", "Give one like 10.1.0.0/24."),
    code(422, "invalid-digest", "The digest is no SHA-256.", "Give 64 hexadecimal digits."),
    code(422, "invalid-filter", "A condition of `filter` is not understood.", "Give FIELD=VALUE, or another comparison: see `/docs`."),
    code(422, "invalid-label", "A label cannot be used.", "Use short, printable keys and values."),
    code(422, "invalid-mac", "The hardware address cannot be used.", "Give a unicast address, or leave it out."),
    code(422, "invalid-name", "The name cannot be used.", "Use lower-case letters, digits, dashes and dots."),
    code(422, "invalid-patch", "The body is no patch of name, labels and spec.", "Send an object with `labels`, `spec` or both."),
    code(422, "invalid-path", "A path cannot be used.", "Give an absolute path, in a guest that of a file."),
    code(422, "invalid-request-id", "The request id cannot be used.", "Use 1 to 128 letters, digits, dashes, dots or underscores."),
    code(422, "invalid-sort", "The field of `sort` is not one value.", "Sort by a field with a single value."),
    code(422, "invalid-spec", "The spec does not have the form that is described.", "Look at the kind's spec in `/docs`."),
    code(422, "invalid-ssh-key", "A line is no ssh public key.", "Give one public key an entry."),
    code(422, "invalid-url", "The source's URL cannot be used.", "Give an http://, https://, ftp:// or nfs:// URL without a password, s3://BUCKET/KEY with its store, or datastore://NAME/PATH."),
    code(422, "invalid-value", "A value of `filter` is none that the field can have.", "Give one of those that the answer names."),
    code(422, "invalid-version", "The version of a template is no number.", "Give one as in `web@3`."),
    code(422, "larger-than-any-host", "No host is as large as the VM.", "Ask for less, or add a larger host."),
    code(422, "memory-missing", "Neither the VM nor its template says how much memory.", "Give `memory_mib`."),
    code(422, "name-missing", "The object needs a name.", "Give `name`."),
    code(422, "not-a-document", "A document's kind cannot be written by a file.", "Leave the document out."),
    code(422, "not-an-image", "The content is no disk image that can be used, and no installation medium.", "Send a whole qcow2, raw, VMDK, VHD, VHDX or VDI image that needs no other file, or an ISO 9660 medium; it may be compressed with gzip, xz or zstd."),
    code(422, "out-of-range", "A number is too small or too large.", "Give one within the bounds that the answer names."),
    code(422, "rules-contradict", "Two placement rules contradict each other.", "Change one of the two that the answer names."),
    code(422, "signature-expired", "The signature with which an object is taken from a store is not good any more.", "Give the same import again: the command line signs it anew."),
    code(422, "signature-missing", "There is no signature with which an object can be taken from a store.", "Give the import by the command line, which signs it, or `source.s3.signature`."),
    code(422, "source-missing", "The image has no source.", "Give `source`, or send the content."),
    code(422, "source-refused", "The image's source does not give its content.", "Look at its URL, and whether it can be fetched otherwise."),
    code(422, "start-needs-template", "Only a VM of a template can be started from memory.", "Give a template, or leave `start` out."),
    code(422, "too-many-labels", "There are more labels than are taken.", "Give fewer."),
    code(422, "unknown-field", "The object has no field of this name.", "Take one of those that the answer names."),
    code(422, "user-data-not-shown", "The user data was left out where the object was taken from.", "Take the object with a token of the role operator, or leave the field as it was."),
    code(422, "user-data-part-unknown", "A part of the user data does not say what it is.", "Begin it as cloud-init has it, such as with `#!` or `#cloud-config`, or give it alone."),
    code(422, "warm-form-has-its-templates", "A warm form is given what its template decides.", "Leave the field out, or leave `warms` out."),
    code(426, "no-websocket", "The console is a WebSocket.", "Ask for the upgrade, or for the log with `log=true`."),
    code(429, "too-many-attempts", "Too many requests without a valid token came from this address.", "Correct the token, and wait as long as `Retry-After` says."),
    code(429, "too-many-polls", "Too many clients wait for changes.", "Wait as long as `Retry-After` says, or use a watch."),
    code(429, "too-many-requests", "The token's user asks more often than is allowed.", "Wait as long as `Retry-After` says; use a watch instead of asking again and again."),
    code(429, "too-many-watches", "Too many watches are open.", "End those that nobody reads, or wait as long as `Retry-After` says."),
    code(500, "backup-failed", "The backup could not be made.", "Look at the server's disk and log."),
    code(500, "image-not-kept", "The image's content could not be written.", "Look at the server's disk and log."),
    code(500, "image-tool-missing", "A program that reads images from outside does not run on the server.", "Install the one that is named, and try again."),
    code(500, "not-shown", "The object cannot be shown.", "Look at the server's log."),
    code(500, "store-failed", "The store failed.", "Look at the server's log."),
    code(500, "unreadable", "What is stored cannot be read.", "Look at the server's log: which release wrote it?"),
    code(503, "agent-away", "The host's agent is not connected.", "See `sterna status`, and try again."),
    code(503, "agent-overtaken", "Another start of the host's agent was heard after this one.", "Nothing: the agent asks again."),
    code(503, "image-store-full", "There is no room for the image's content.", "Free room where the server keeps images."),
    code(503, "server-behind", "The server has not heard yet of all that its store has.", "Try again, or ask another server."),
    code(503, "source-changed", "The image's source changed while it was read, each time.", "Import it again when it is at rest."),
    code(503, "source-unreachable", "The image's source did not answer.", "Look whether the server can reach it, and import it again."),
    code(503, "store-full", "There is no room for the store; nothing was changed.", "Free room where the server keeps its store."),
    code(503, "store-unavailable", "The store does not answer now.", "Try again."),
    code(503, "too-many-applies", "The server does as many applies as it can at once.", "Try again when some have ended."),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_in_order_and_each_there_once() {
        let keys: Vec<_> = CODES.iter().map(|code| (code.status, code.code)).collect();
        assert!(keys.is_sorted(), "by status, then by name");
        let mut codes: Vec<_> = CODES.iter().map(|code| code.code).collect();
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), CODES.len());
    }
}
