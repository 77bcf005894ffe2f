//! `probe`: the test guest's tool. It makes traffic, memory writes and disk writes whose loss or delay can be counted, so
//! that a test can tell what a migration or a crash did to a guest.
//!
//! Each module is one command (or a pair that talks to each other) and keeps its counting in a plain struct without
//! clocks or sockets, which the tests feed by hand. All times come from the monotonic clock: the wall clock may be set at
//! any time, and would then show gaps that were none. Start reading at [`run`].

#![allow(
    clippy::disallowed_methods,
    reason = "its work is to wait and to look at real clocks; no simulator runs it"
)]

use std::process::ExitCode;
use std::time::Duration;

mod boot;
mod count;
mod dirty;
mod echo;
mod identity;
mod lines;
mod network_config;
mod ping;
mod reseed;
mod seed;
mod tick;

/// What a command ends with; the message is printed as it stands.
type Outcome = Result<(), Box<dyn std::error::Error>>;

const USAGE: &str = "usage:
  probe echo PORT                             answers TCP with what it got
  probe echo-udp PORT                         answers UDP with what it got
  probe serve-lines PORT INTERVAL_MS          gives each connection the lines `N MS_SINCE_EPOCH`, N = 0, 1, …
  probe read-lines HOST PORT                  reads them; counts gaps and repeats until the connection closes
  probe ping HOST PORT INTERVAL_MS [SECONDS]  numbered requests to an echo-udp; lost = no answer within a second
  probe dirty MIB PAGES_PER_S                 rewrites memory pages at this rate
  probe tick [SECONDS]                        wakes every millisecond; tells the largest gap
  probe count FILE INTERVAL_MS PORT           counter on disk, past the page cache; then sends each number to all by UDP
  probe hear PORT                             listens to it; counts what went back
  probe network-config FILE                   prints a network-config, one setting a line (for the guest's boot)
  probe reseed                                new random numbers, from the 64 bytes or more on standard input
  probe identity FOLDER                       waits at its pipe to be told who its guest is, and has it be that
  probe services                              echo 7, echo-udp 7 and serve-lines 2000 10, in one process
  probe agent                                 becomes the guest agent when its port is there
  probe boot                                  second part of the guest's boot";

fn main() -> ExitCode {
    if std::process::id() == 1 {
        return ended(boot::first());
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match run(&words) {
        Some(outcome) => ended(outcome),
        None => {
            eprintln!("{USAGE}");
            ExitCode::from(2)
        }
    }
}

fn ended(outcome: Outcome) -> ExitCode {
    let Err(error) = outcome else {
        return ExitCode::SUCCESS;
    };
    eprintln!("probe: {error}");
    ExitCode::FAILURE
}

/// Runs the command that the words name; `None` if they name none.
fn run(words: &[&str]) -> Option<Outcome> {
    Some(match *words {
        ["echo", port] => echo::tcp(port.parse().ok()?),
        ["echo-udp", port] => echo::udp(port.parse().ok()?),
        ["serve-lines", port, interval] => lines::serve(port.parse().ok()?, millis(interval)?),
        ["read-lines", host, port] => lines::read(host, port.parse().ok()?),
        ["ping", host, port, interval] => ping::run(host, port.parse().ok()?, millis(interval)?, None),
        ["ping", host, port, interval, limit] => {
            ping::run(host, port.parse().ok()?, millis(interval)?, Some(seconds(limit)?))
        }
        ["dirty", mib, rate] => dirty::run(mib.parse().ok()?, rate.parse().ok()?),
        ["tick"] => tick::run(None),
        ["tick", limit] => tick::run(Some(seconds(limit)?)),
        ["count", file, interval, port] => count::run(file, millis(interval)?, port.parse().ok()?),
        ["hear", port] => count::hear(port.parse().ok()?),
        ["network-config", file] => network_config::print(file),
        ["reseed"] => reseed::run(),
        ["identity", folder] => identity::run(folder.as_ref()),
        ["services"] => services(),
        ["agent"] => boot::agent(),
        ["boot"] => boot::rest(),
        _ => return None,
    })
}

/// What every guest offers to tests. A server that cannot start says so, and the others go on.
fn services() -> Outcome {
    let servers: [fn() -> Outcome; 3] = [
        || echo::tcp(7),
        || echo::udp(7),
        || lines::serve(2000, Duration::from_millis(10)),
    ];
    let running = servers.map(|serve| std::thread::spawn(move || ended(serve())));
    for server in running {
        let _ = server.join();
    }
    Ok(())
}

fn millis(word: &str) -> Option<Duration> {
    word.parse().ok().map(Duration::from_millis)
}

fn seconds(word: &str) -> Option<Duration> {
    word.parse().ok().map(Duration::from_secs)
}

/// Milliseconds with one decimal, for the lines that commands print.
fn as_ms(time: Duration) -> String {
    format!("{:.1}", time.as_secs_f64() * 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_words_are_no_command() {
        for words in [
            &["echo"][..],
            &["echo", "seven"],
            &["ping", "h", "1", "x"],
            &["nothing"],
            &[],
        ] {
            assert!(run(words).is_none(), "{words:?}");
        }
    }

    #[test]
    fn times_have_one_decimal() {
        assert_eq!(as_ms(Duration::from_micros(12_340)), "12.3");
    }
}
