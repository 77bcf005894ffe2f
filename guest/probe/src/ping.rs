//! Numbered requests over UDP: how many got an answer in time, and how late the latest was.

use std::collections::VecDeque;
use std::net::{ToSocketAddrs, UdpSocket};
use std::time::{Duration, Instant};

use crate::{Outcome, as_ms};

/// An answer later than this counts as none.
const PATIENCE: Duration = Duration::from_secs(1);
const REPORT: Duration = Duration::from_secs(1);

/// Which requests were answered; times are since the start.
#[derive(Debug, Default)]
struct Tally {
    waiting: VecDeque<(u64, Duration)>,
    sent: u64,
    received: u64,
    lost: u64,
    max_rtt: Duration,
}

impl Tally {
    /// The next request's number, which is sent now.
    fn send(&mut self, now: Duration) -> u64 {
        let number = self.sent;
        self.waiting.push_back((number, now));
        self.sent += 1;
        number
    }

    /// An answer. A second one to the same request, or one that comes after the patience ended, changes nothing.
    fn answer(&mut self, number: u64, now: Duration) {
        self.expire(now);
        if let Some(place) = self.waiting.iter().position(|(waiting, _)| *waiting == number)
            && let Some((_, sent)) = self.waiting.remove(place)
        {
            self.received += 1;
            self.max_rtt = self.max_rtt.max(now.saturating_sub(sent));
        }
    }

    /// Gives up on requests that have waited too long.
    fn expire(&mut self, now: Duration) {
        while self
            .waiting
            .front()
            .is_some_and(|(_, sent)| now.saturating_sub(*sent) > PATIENCE)
        {
            self.waiting.pop_front();
            self.lost += 1;
        }
    }

    fn report(&self) -> String {
        let max_rtt = as_ms(self.max_rtt);
        format!(
            "sent={} received={} lost={} max_rtt_ms={max_rtt}",
            self.sent, self.received, self.lost
        )
    }
}

/// Sends a request each interval, reports each second; with a limit it then waits for the last answers and fails if any
/// request was lost.
pub(crate) fn run(host: &str, port: u16, interval: Duration, limit: Option<Duration>) -> Outcome {
    let socket = connect(host, port)?;
    // Tells answers to an earlier run, from the same port, apart.
    let session = u64::from(std::process::id());
    let start = Instant::now();
    let mut tally = Tally::default();
    let (mut next_send, mut next_report) = (Duration::ZERO, REPORT);
    loop {
        let now = start.elapsed();
        let sending = limit.is_none_or(|limit| now < limit);
        if sending && now >= next_send {
            // A request that cannot be sent (no route for now) is lost like any other.
            let _ = socket.send(&encode(session, tally.send(now)));
            // After a pause of this machine itself, go on from now: the missed ones were never sent.
            next_send = if now > next_send + PATIENCE {
                now + interval
            } else {
                next_send + interval
            };
        }
        tally.expire(now);
        if now >= next_report {
            println!("{}", tally.report());
            next_report += REPORT;
        }
        if !sending && tally.waiting.is_empty() {
            break;
        }
        let wake = if sending {
            next_send.min(next_report)
        } else {
            next_report
        };
        receive(&socket, session, &mut tally, start, wake)?;
    }
    println!("done {}", tally.report());
    if tally.lost > 0 {
        Err(format!("{} of {} requests were lost", tally.lost, tally.sent).into())
    } else {
        Ok(())
    }
}

fn connect(host: &str, port: u16) -> Result<UdpSocket, Box<dyn std::error::Error>> {
    let target = (host, port)
        .to_socket_addrs()?
        .next()
        .ok_or_else(|| format!("{host} has no address"))?;
    let socket = UdpSocket::bind(if target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
    socket.connect(target)?;
    Ok(socket)
}

/// Takes at most one answer, and waits for it no longer than until `wake`.
fn receive(socket: &UdpSocket, session: u64, tally: &mut Tally, start: Instant, wake: Duration) -> Outcome {
    let wait = wake.saturating_sub(start.elapsed());
    socket.set_read_timeout(Some(wait.max(Duration::from_millis(1))))?;
    let mut datagram = [0; 32];
    // Errors are timeouts, or a refusal while nothing listens yet: the requests concerned run out of patience.
    if let Ok(length) = socket.recv(&mut datagram)
        && let Some(number) = decode(session, &datagram[..length])
    {
        tally.answer(number, start.elapsed());
    }
    Ok(())
}

fn encode(session: u64, number: u64) -> [u8; 16] {
    let mut datagram = [0; 16];
    datagram[..8].copy_from_slice(&session.to_be_bytes());
    datagram[8..].copy_from_slice(&number.to_be_bytes());
    datagram
}

fn decode(session: u64, datagram: &[u8]) -> Option<u64> {
    let (head, number) = datagram.split_first_chunk::<8>()?;
    (u64::from_be_bytes(*head) == session).then_some(())?;
    Some(u64::from_be_bytes(number.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn answers_count_once_and_only_in_time() {
        let mut tally = Tally::default();
        for ms in [0, 50, 100] {
            tally.send(at(ms));
        }
        tally.answer(1, at(80));
        tally.answer(1, at(90));
        tally.answer(2, at(1100));
        tally.answer(0, at(1101));
        assert_eq!(tally.report(), "sent=3 received=2 lost=1 max_rtt_ms=1000.0");
    }

    #[test]
    fn a_datagram_is_read_as_it_was_written() {
        assert_eq!(decode(7, &encode(7, 42)), Some(42));
        assert_eq!(decode(8, &encode(7, 42)), None);
        assert_eq!(decode(7, &encode(7, 42)[..15]), None);
    }

    #[test]
    fn loses_nothing_to_an_echo() -> std::io::Result<()> {
        let server = UdpSocket::bind(("127.0.0.1", 0))?;
        let port = server.local_addr()?.port();
        std::thread::spawn(move || {
            let mut datagram = [0; 32];
            while let Ok((length, from)) = server.recv_from(&mut datagram) {
                let _ = server.send_to(&datagram[..length], from);
            }
        });
        assert!(run("127.0.0.1", port, at(5), Some(at(40))).is_ok());
        Ok(())
    }
}
