//! The table: what fails, when, and how that ends.
//!
//! **Owns:** the entries, and why some pairs have none. **Does not know:** how an instant is met or a fault made.
//!
//! Each entry is made on a guest that counts the whole time, on its disk and to the network ([`testkit::counter`]). After each of
//! them its counter has gone on, and never back; it is the same guest as before, or says why not and boots when it is
//! told to. After the last of them, its disk has one history and a clean file system.
//!
//! What is left out:
//! - **server, agents and QEMU while a VM boots, is suspended or resumed**: [`super::life`] kills them there, at more instants;
//! - **server and agent while a disk is made whole**: `stories/flatten` kills both there, since a disk is made whole once;
//! - **the deletion of the image while a disk is copied or made whole**: it is refused as long as the disk is over it;
//! - **the link between the hosts while no VM moves**: nothing of Sterna's crosses it then;
//! - **the target's agent and QEMU while no VM moves**: there are none;
//! - **the link one way, or the source alone, at pre-switchover**: they are made right before it, in pre-copy, and right after it;
//! - **the datastore while a VM moves or is resumed**: a move of a shared disk allocates nothing, and a resume reads.
//!
//! **Start here:** [`TABLE`].

/// An entry: made when the stage is reached, undone when its end is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) fault: Fault,
    pub(super) stage: Stage,
    pub(super) end: End,
    pub(super) when: When,
}

/// What fails. Processes are killed by SIGKILL; server and agents are started again by who supervises them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    Server,
    /// Of the host that has the VM; of a move, its source.
    SourceAgent,
    TargetAgent,
    SourceQemu,
    TargetQemu,
    /// Both hosts lose what they send each other.
    Link,
    /// The target loses what it sends to the source.
    LinkToSource,
    /// The source loses what it sends to the target.
    LinkToTarget,
    /// As `Link`, but it is whole again before anybody has given up.
    LinkBriefly,
    /// The source's host loses what it sends to the target and to the server.
    SourceIsolated,
    /// The host loses what it sends to the server.
    ServerLink,
    /// The datastore has no room left.
    FullDatastore,
    /// The clock of the VM's host is set back by a day, and ahead by one.
    HostClock,
    /// The server's clock is set back by a day; the server ends and is started again.
    ServerClock,
    /// Server and hosts get new certificates.
    Certificates,
}

/// When it fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stage {
    Boot,
    Running,
    /// The state of the VM is written to the datastore.
    Stop,
    /// Its disk is copied for another VM.
    Copy,
    /// Its disk is made whole.
    Flatten,
    /// Memory is being sent, and the guest runs.
    PreCopy,
    /// The source's QEMU has stopped the guest and waits for its agent's word.
    PreSwitchover,
    /// All has been sent; the target has not loaded it.
    SwitchOver,
    /// The target has loaded, the source's QEMU has completed; nobody has been told.
    Switched,
}

/// What comes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// The same guest, in the same process.
    GoesOn,
    /// The move has failed, says why, and the same guest is at its source.
    AtSource,
    /// The move is done.
    AtTarget,
    /// One of the two before, as the record says.
    AtEither,
    /// The VM has failed with the cause, and boots when it is told to start again.
    Fails,
    /// The guest stands still, the VM says why, and it goes on by itself when the fault is over.
    Waits,
    /// What was asked for has failed with the cause, the guest goes on, and the second try succeeds.
    Refused,
}

/// Who makes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum When {
    /// `make test`, and `make soak`.
    Usual,
    Soak,
}

pub(super) const TABLE: [Entry; 47] = [
    soak(Fault::Server, Stage::Running, End::GoesOn),
    soak(Fault::SourceAgent, Stage::Running, End::GoesOn),
    soak(Fault::ServerLink, Stage::Running, End::GoesOn),
    soak(Fault::HostClock, Stage::Running, End::GoesOn),
    soak(Fault::ServerClock, Stage::Running, End::GoesOn),
    soak(Fault::SourceQemu, Stage::Running, End::Fails),
    // Its disk is an overlay with more of its own, and is whole after the next start.
    soak(Fault::SourceQemu, Stage::Flatten, End::Fails),
    soak(Fault::Server, Stage::PreCopy, End::AtEither),
    soak(Fault::SourceAgent, Stage::PreCopy, End::AtEither),
    soak(Fault::TargetAgent, Stage::PreCopy, End::AtEither),
    usual(Fault::TargetQemu, Stage::PreCopy, End::AtSource),
    soak(Fault::SourceQemu, Stage::PreCopy, End::Fails),
    soak(Fault::Link, Stage::PreCopy, End::AtSource),
    soak(Fault::LinkToSource, Stage::PreCopy, End::AtSource),
    soak(Fault::LinkToTarget, Stage::PreCopy, End::AtSource),
    soak(Fault::LinkBriefly, Stage::PreCopy, End::AtTarget),
    // The moves after it begin with what it made.
    usual(Fault::Certificates, Stage::PreCopy, End::AtTarget),
    soak(Fault::HostClock, Stage::PreCopy, End::AtTarget),
    soak(Fault::SourceIsolated, Stage::PreCopy, End::AtSource),
    // The source's QEMU waits in the kernel, and answers nobody.
    soak(Fault::Link, Stage::PreSwitchover, End::AtSource),
    soak(Fault::Server, Stage::PreSwitchover, End::AtEither),
    usual(Fault::SourceAgent, Stage::PreSwitchover, End::AtEither),
    soak(Fault::TargetAgent, Stage::PreSwitchover, End::AtEither),
    soak(Fault::TargetQemu, Stage::PreSwitchover, End::AtSource),
    soak(Fault::SourceQemu, Stage::PreSwitchover, End::Fails),
    soak(Fault::LinkBriefly, Stage::PreSwitchover, End::AtTarget),
    soak(Fault::Server, Stage::SwitchOver, End::AtTarget),
    soak(Fault::SourceAgent, Stage::SwitchOver, End::AtTarget),
    soak(Fault::TargetAgent, Stage::SwitchOver, End::AtTarget),
    soak(Fault::TargetQemu, Stage::SwitchOver, End::AtSource),
    // The final acknowledgement is swallowed: two complete copies exist, and one of them goes on.
    usual(Fault::Link, Stage::SwitchOver, End::AtSource),
    soak(Fault::LinkToSource, Stage::SwitchOver, End::AtSource),
    soak(Fault::LinkToTarget, Stage::SwitchOver, End::AtTarget),
    soak(Fault::LinkBriefly, Stage::SwitchOver, End::AtEither),
    soak(Fault::SourceIsolated, Stage::SwitchOver, End::AtSource),
    soak(Fault::Server, Stage::Switched, End::AtTarget),
    soak(Fault::SourceAgent, Stage::Switched, End::AtTarget),
    usual(Fault::TargetAgent, Stage::Switched, End::AtTarget),
    soak(Fault::TargetQemu, Stage::Switched, End::AtSource),
    // `go` cannot come: the record says it.
    soak(Fault::Link, Stage::Switched, End::AtTarget),
    // That it has completed is lost with it: what the target has is never used.
    usual(Fault::SourceQemu, Stage::Switched, End::Fails),
    soak(Fault::SourceQemu, Stage::SwitchOver, End::Fails),
    usual(Fault::FullDatastore, Stage::Running, End::Waits),
    usual(Fault::FullDatastore, Stage::Boot, End::Fails),
    usual(Fault::FullDatastore, Stage::Stop, End::Refused),
    usual(Fault::FullDatastore, Stage::Copy, End::Refused),
    soak(Fault::FullDatastore, Stage::Flatten, End::Refused),
];

const fn usual(fault: Fault, stage: Stage, end: End) -> Entry {
    Entry {
        fault,
        stage,
        end,
        when: When::Usual,
    }
}

const fn soak(fault: Fault, stage: Stage, end: End) -> Entry {
    Entry {
        when: When::Soak,
        ..usual(fault, stage, end)
    }
}

impl Stage {
    /// Whether the VM moves then.
    pub(super) fn is_of_a_move(self) -> bool {
        self >= Self::PreCopy
    }
}

/// The entries of some kind, in their order.
pub(super) fn entries(is_it: impl Fn(&Entry) -> bool) -> Vec<Entry> {
    TABLE.into_iter().filter(is_it).collect()
}

#[test]
fn no_pair_stands_twice() {
    for (n, one) in TABLE.iter().enumerate() {
        let again = TABLE[..n]
            .iter()
            .find(|other| (other.fault, other.stage) == (one.fault, one.stage));
        assert_eq!(again, None, "{one:?}");
    }
}
