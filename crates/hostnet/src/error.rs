//! Owns: what can go wrong, typed by what the caller can do about it.
//! Does not know: who asked.
//! Start here: [`NetError::is_retryable`].

use std::io;

use rustix::io::Errno;

/// Why something about the host's network could not be done. Repeating the call is always safe.
#[derive(Debug, thiserror::Error)]
#[error("{attempt} {subject}: {}", .cause.remedy())]
pub struct NetError {
    /// What was attempted.
    pub attempt: &'static str,
    /// The interface, or the thing that is not one.
    pub subject: String,
    /// What kind of failure it is.
    pub cause: Cause,
    #[source]
    source: io::Error,
}

/// Kinds of failure, by what helps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The process lacks a right.
    NotPermitted,
    /// The kernel was built without it, or its module is not there.
    Unsupported,
    /// The interface, address or process does not exist.
    Missing,
    /// Something else has the same name, or the same VNI and port.
    Conflict,
    /// A process holds it.
    Busy,
    /// A limit of the kernel is reached.
    Exhausted,
    /// There was no answer within the deadline.
    TimedOut,
    /// The call came too late or in the wrong place.
    Misused,
    /// Anything else.
    Other,
}

impl Cause {
    fn remedy(self) -> &'static str {
        match self {
            Self::NotPermitted => {
                "not permitted; run as root, or allow user namespaces (user.max_user_namespaces above 0, \
                 kernel.apparmor_restrict_unprivileged_userns=0) and /dev/net/tun for everyone (mode 0666)"
            }
            Self::Unsupported => {
                "the kernel lacks it; load the module (vxlan, tun, bridge, veth) or use a kernel that has it"
            }
            Self::Missing => "it does not exist (any more); make it again",
            Self::Conflict => {
                "another interface has the same name, or the same VNI and port, or the port is in another bridge; \
                 delete that one"
            }
            Self::Busy => "a process holds it; end the process, or wait for its end",
            Self::Exhausted => {
                "a limit of the kernel is reached; delete interfaces or raise user.max_net_namespaces and user.max_user_namespaces"
            }
            Self::TimedOut => "the kernel did not answer in time; try again",
            Self::Misused => {
                "the process has several threads already, or a value is out of range; call it first in main"
            }
            Self::Other => "the kernel refused",
        }
    }

    fn of(source: &io::Error) -> Self {
        if source.kind() == io::ErrorKind::TimedOut {
            return Self::TimedOut;
        }
        match Errno::from_io_error(source) {
            Some(Errno::PERM | Errno::ACCESS) => Self::NotPermitted,
            Some(Errno::OPNOTSUPP | Errno::AFNOSUPPORT | Errno::NOSYS | Errno::PROTONOSUPPORT) => {
                Self::Unsupported
            }
            Some(Errno::NODEV | Errno::NOENT | Errno::NXIO | Errno::SRCH | Errno::NETUNREACH) => {
                Self::Missing
            }
            Some(Errno::EXIST | Errno::ADDRINUSE) => Self::Conflict,
            Some(Errno::BUSY) => Self::Busy,
            Some(
                Errno::NOSPC | Errno::NOMEM | Errno::NOBUFS | Errno::MFILE | Errno::NFILE | Errno::USERS,
            ) => Self::Exhausted,
            Some(Errno::INVAL | Errno::RANGE) => Self::Misused,
            _ => Self::Other,
        }
    }
}

impl NetError {
    /// Whether the same call can succeed later without anybody doing anything about it.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self.cause, Cause::TimedOut | Cause::Busy | Cause::Exhausted)
    }

    pub(crate) fn new(attempt: &'static str, subject: impl ToString, source: io::Error) -> Self {
        Self {
            attempt,
            subject: subject.to_string(),
            cause: Cause::of(&source),
            source,
        }
    }

    pub(crate) fn errno(attempt: &'static str, subject: impl ToString, errno: Errno) -> Self {
        Self::new(attempt, subject, errno.into())
    }

    pub(crate) fn timed_out(attempt: &'static str, subject: impl ToString) -> Self {
        Self::new(attempt, subject, io::ErrorKind::TimedOut.into())
    }

    pub(crate) fn is(&self, errno: Errno) -> bool {
        Errno::from_io_error(&self.source) == Some(errno)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_the_attempt_the_interface_and_the_remedy() {
        let error = NetError::errno("create the tap", "st0", Errno::PERM);
        let text = error.to_string();
        assert!(
            text.starts_with("create the tap st0: not permitted; run as root"),
            "{text}"
        );
        assert!(!error.is_retryable());
        assert!(NetError::timed_out("list", "links").is_retryable());
    }
}
