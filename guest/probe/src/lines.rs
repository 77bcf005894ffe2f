//! A numbered stream over TCP: `serve` sends it, `read` tells what was missing, doubled or late.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv6Addr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::{Outcome, as_ms};

const RETRY: Duration = Duration::from_millis(50);
const REPORT: Duration = Duration::from_secs(1);

/// Gives each connection its own numbers from 0, one line per interval, for ever.
pub(crate) fn serve(port: u16, interval: Duration) -> Outcome {
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))?;
    for stream in listener.incoming().flatten() {
        thread::spawn(move || send_lines(stream, interval));
    }
    Ok(())
}

fn send_lines(mut stream: TcpStream, interval: Duration) {
    let _ = stream.set_nodelay(true);
    for number in 0_u64.. {
        let now_ms = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_millis();
        if stream
            .write_all(format!("{number} {now_ms}\n").as_bytes())
            .is_err()
        {
            return;
        }
        thread::sleep(interval);
    }
}

/// What was seen of a numbered stream.
#[derive(Debug, Default)]
struct Tally {
    partial: Vec<u8>,
    lines: u64,
    errors: u64,
    last: Option<u64>,
    last_at: Option<Duration>,
    max_gap: Duration,
}

impl Tally {
    /// Takes bytes that arrived at a time since the start. A number that does not follow its predecessor, and a line
    /// that has no number, is one error each.
    fn take(&mut self, bytes: &[u8], at: Duration) {
        for &byte in bytes {
            if byte == b'\n' {
                let line = std::mem::take(&mut self.partial);
                self.line(&line, at);
            } else {
                self.partial.push(byte);
            }
        }
    }

    fn line(&mut self, line: &[u8], at: Duration) {
        self.lines += 1;
        self.max_gap = self.max_gap.max(self.silence(at));
        self.last_at = Some(at);
        let number = std::str::from_utf8(line)
            .ok()
            .and_then(|line| line.split(' ').next()?.parse::<u64>().ok());
        let expected = self.last.map_or(0, |last| last + 1);
        if number != Some(expected) {
            self.errors += 1;
        }
        self.last = number.or(self.last);
    }

    fn silence(&self, at: Duration) -> Duration {
        self.last_at
            .map_or(Duration::ZERO, |last| at.saturating_sub(last))
    }

    /// The counters; a silence that still lasts counts as a gap.
    fn report(&self, at: Duration) -> String {
        let last = self.last.map_or_else(|| "none".into(), |last| last.to_string());
        let max_gap = self.max_gap.max(self.silence(at));
        format!(
            "lines={} errors={} last={last} max_gap_ms={}",
            self.lines,
            self.errors,
            as_ms(max_gap)
        )
    }
}

/// Connects once (trying until that succeeds) and reports each second and at the end. Fails if a line was wrong.
pub(crate) fn read(host: &str, port: u16) -> Outcome {
    let mut stream = connect(host, port);
    let start = Instant::now();
    let mut tally = Tally::default();
    let mut next_report = REPORT;
    let mut buffer = [0; 4096];
    let cause = loop {
        let wait = next_report
            .saturating_sub(start.elapsed())
            .max(Duration::from_millis(1));
        stream.set_read_timeout(Some(wait))?;
        match stream.read(&mut buffer) {
            Ok(0) => break "eof".to_owned(),
            Ok(length) => tally.take(&buffer[..length], start.elapsed()),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => break error.kind().to_string().replace(' ', "-"),
        }
        if start.elapsed() >= next_report {
            println!("{}", tally.report(start.elapsed()));
            next_report += REPORT;
        }
    };
    println!("closed cause={cause} {}", tally.report(start.elapsed()));
    if tally.errors > 0 {
        Err(format!("{} lines were not the expected ones", tally.errors).into())
    } else {
        Ok(())
    }
}

fn connect(host: &str, port: u16) -> TcpStream {
    loop {
        match TcpStream::connect((host, port)) {
            Ok(stream) => return stream,
            Err(_) => thread::sleep(RETRY),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_whole_stream_has_no_errors_however_it_is_cut() {
        let mut tally = Tally::default();
        tally.take(b"0 17\n1 1", at(10));
        tally.take(b"8\n2 19\n", at(25));
        assert_eq!(tally.report(at(25)), "lines=3 errors=0 last=2 max_gap_ms=15.0");
    }

    #[test]
    fn gaps_repeats_and_rubbish_are_errors() {
        let mut tally = Tally::default();
        tally.take(b"0 1\n2 1\n2 1\nx\n3 1\n", at(0));
        assert_eq!(tally.report(at(0)), "lines=5 errors=3 last=3 max_gap_ms=0.0");
    }

    #[test]
    fn a_stream_that_begins_late_is_an_error() {
        let mut tally = Tally::default();
        tally.take(b"7 1\n8 1\n", at(0));
        assert_eq!((tally.errors, tally.last), (1, Some(8)));
    }

    #[test]
    fn a_lasting_silence_shows() {
        let mut tally = Tally::default();
        assert_eq!(tally.report(at(900)), "lines=0 errors=0 last=none max_gap_ms=0.0");
        tally.take(b"0 1\n", at(1000));
        assert_eq!(tally.report(at(1700)), "lines=1 errors=0 last=0 max_gap_ms=700.0");
    }

    #[test]
    fn reads_what_serve_sends() -> std::io::Result<()> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let port = listener.local_addr()?.port();
        thread::spawn(move || {
            if let Ok((stream, _)) = listener.accept() {
                let copy = stream.try_clone();
                thread::spawn(move || send_lines(stream, at(1)));
                thread::sleep(at(30));
                let _ = copy.map(|copy| copy.shutdown(std::net::Shutdown::Both));
            }
        });
        assert!(read("127.0.0.1", port).is_ok());
        Ok(())
    }
}
