//! A file on an FTP server: RFC 959, with sizes, times and restarts of RFC 3659 and passive ports of RFC 2428.
//!
//! **Owns:** what is asked, and what the replies mean.
//!
//! **Does not know:** when it is asked again.
//!
//! **Start here:** [`Ftp::open`]. Data comes over a second connection, which goes to the address of the first one, whatever
//! address the server gives: it is the one that was checked.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, stream};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;
use url::Url;

use super::download::{Broken, Opened, SILENCE_DEADLINE};
use super::partial::Begun;
use super::reach::{Reach, final_problem};
use super::source;

/// The longest line of a reply, and the most lines of one.
const LINE_MAX_BYTES: u64 = 4096;
const LINES_MAX: usize = 200;
/// How much is read at once.
const CHUNK_BYTES: usize = 256 * 1024;

/// A file that an FTP server gives to anybody.
pub(super) struct Ftp {
    pub(super) reach: Arc<Reach>,
    pub(super) url: Url,
}

impl Ftp {
    /// Asks for the file from a byte on.
    pub(super) async fn open(&self, from: u64, begun: Option<&Begun>) -> Result<Opened, Broken> {
        let opened = timeout(SILENCE_DEADLINE, self.opened(from, begun)).await;
        opened.unwrap_or_else(|_| Err(Broken::Passing("it did not answer".to_owned())))
    }

    async fn opened(&self, from: u64, before: Option<&Begun>) -> Result<Opened, Broken> {
        let path = source::path(&self.url);
        let mut control = Control::connect(&self.reach, &self.url).await?;
        control.log_in().await?;
        let begun = control.look_at(&path).await?;
        if from > 0 && before != Some(&begun) {
            return Err(Broken::Changed("it has become another file".to_owned()));
        }
        let port = control.passive_port().await?;
        let address = SocketAddr::new(control.peer.ip(), port);
        let data = self.reach.connect_to(address).await?;
        if from > 0 && control.ask(&format!("REST {from}")).await?.code != 350 {
            let why = "it does not send the rest of a file";
            return Err(Broken::Changed(why.to_owned()));
        }
        control.ask(&format!("RETR {path}")).await?.begins()?;
        let rest = begun.bytes_total.map(|total| total.saturating_sub(from));
        let coming = Coming { control, data, rest };
        Ok(Opened {
            begun,
            bytes: stream::try_unfold(coming, Coming::next).boxed(),
        })
    }
}

/// A file that is being sent.
struct Coming {
    control: Control,
    data: TcpStream,
    /// How much is missing, if that is known.
    rest: Option<u64>,
}

impl Coming {
    async fn next(mut self) -> Result<Option<(Bytes, Self)>, String> {
        let mut chunk = BytesMut::with_capacity(CHUNK_BYTES);
        let read = self.data.read_buf(&mut chunk).await;
        let read = read.map_err(|error| error.to_string())?;
        if read > 0 {
            self.rest = self.rest.map(|rest| rest.saturating_sub(read as u64));
            return Ok(Some((chunk.freeze(), self)));
        }
        if self.rest.is_some_and(|rest| rest > 0) {
            return Err("it ended early".to_owned());
        }
        // Without a size, only this says that it was all.
        let reply = self.control.reply().await.map_err(Broken::into_words)?;
        if !reply.is_done() {
            return Err(format!("it says {reply}"));
        }
        Ok(None)
    }
}

/// The connection on which is asked.
struct Control {
    stream: BufReader<TcpStream>,
    peer: SocketAddr,
}

impl Control {
    async fn connect(reach: &Reach, url: &Url) -> Result<Self, Broken> {
        let stream = reach.connect_plainly(url).await?;
        let peer = stream.peer_addr()?;
        let mut control = Self {
            stream: BufReader::new(stream),
            peer,
        };
        control.reply().await?.done()?;
        Ok(control)
    }

    async fn ask(&mut self, command: &str) -> Result<Reply, Broken> {
        let line = format!("{command}\r\n");
        self.stream.write_all(line.as_bytes()).await?;
        self.reply().await
    }

    async fn reply(&mut self) -> Result<Reply, Broken> {
        let mut first: Option<Reply> = None;
        for _ in 0..LINES_MAX {
            let line = self.line().await?;
            let reply = Reply::of(&line);
            let is_last = line.as_bytes().get(3) != Some(&b'-');
            match (&first, reply) {
                (None, Some(reply)) if is_last => return Ok(reply),
                (None, Some(reply)) => first = Some(reply),
                (None, None) => return Err(final_problem("what answers is no FTP server")),
                (Some(begun), Some(reply)) if is_last && reply.code == begun.code => return Ok(reply),
                (Some(_), _) => {}
            }
        }
        Err(final_problem("its reply has too many lines"))
    }

    async fn line(&mut self) -> Result<String, Broken> {
        let mut line = Vec::new();
        let mut bounded = (&mut self.stream).take(LINE_MAX_BYTES);
        bounded.read_until(b'\n', &mut line).await?;
        if line.is_empty() {
            return Err(Broken::Passing("it ended the connection".to_owned()));
        }
        if line.last() != Some(&b'\n') && line.len() as u64 >= LINE_MAX_BYTES {
            return Err(final_problem("a line of its reply is too long"));
        }
        Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
    }

    /// As anybody.
    async fn log_in(&mut self) -> Result<(), Broken> {
        let mut reply = self.ask("USER anonymous").await?;
        if reply.code == 331 {
            reply = self.ask("PASS sterna@").await?;
        }
        reply.done()?;
        self.ask("TYPE I").await?.done()
    }

    /// What it says of the file. A server need not know these two commands.
    async fn look_at(&mut self, path: &str) -> Result<Begun, Broken> {
        let size = self.fact(&format!("SIZE {path}")).await?;
        let time = self.fact(&format!("MDTM {path}")).await?;
        let bytes_total = size.as_ref().and_then(|size| size.parse().ok());
        Ok(Begun {
            validator: time.zip(size).map(|(time, size)| format!("{time} {size}")),
            bytes_total,
        })
    }

    async fn fact(&mut self, command: &str) -> Result<Option<String>, Broken> {
        let reply = self.ask(command).await?;
        match reply.code {
            213 => Ok(Some(reply.text)),
            500..=504 => Ok(None),
            _ => reply.done().map(|()| None),
        }
    }

    /// Where the data will be.
    async fn passive_port(&mut self) -> Result<u16, Broken> {
        let reply = self.ask("EPSV").await?;
        let port = if reply.code == 229 {
            extended_port(&reply.text)
        } else {
            let reply = self.ask("PASV").await?;
            reply.done()?;
            passive_port(&reply.text)
        };
        let port = port.filter(|port| *port > 0);
        port.ok_or_else(|| final_problem("it does not say where the data is"))
    }
}

/// The port of `Entering Extended Passive Mode (|||6446|)`.
fn extended_port(text: &str) -> Option<u16> {
    let (_, rest) = text.split_once("|||")?;
    rest.split_once('|')?.0.parse().ok()
}

/// The port of `Entering Passive Mode (192,0,2,1,25,46)`. The address is not looked at.
fn passive_port(text: &str) -> Option<u16> {
    let begin = text.find(|letter: char| letter.is_ascii_digit())?;
    let numbers = text.get(begin..)?.split(|letter: char| !letter.is_ascii_digit());
    let numbers: Option<Vec<u8>> = numbers.take(6).map(|number| number.parse().ok()).collect();
    match numbers?.as_slice() {
        [_, _, _, _, high, low] => Some(u16::from_be_bytes([*high, *low])),
        _ => None,
    }
}

/// What a server says to a command.
#[derive(Debug, PartialEq, Eq)]
struct Reply {
    code: u16,
    text: String,
}

impl std::fmt::Display for Reply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let plain = self.text.chars().filter(|letter| !letter.is_control());
        write!(f, "{} {}", self.code, plain.take(200).collect::<String>())
    }
}

impl Reply {
    /// Of a line that begins with a code.
    fn of(line: &str) -> Option<Self> {
        let code = line
            .get(..3)
            .filter(|code| code.bytes().all(|byte| byte.is_ascii_digit()))?;
        Some(Self {
            code: code.parse().ok()?,
            text: line.get(4..).unwrap_or_default().trim().to_owned(),
        })
    }

    fn is_done(&self) -> bool {
        (200..300).contains(&self.code)
    }

    /// Nothing, if it was done; else what that means.
    fn done(&self) -> Result<(), Broken> {
        if self.is_done() {
            Ok(())
        } else {
            Err(self.refusal())
        }
    }

    /// Nothing, if what was asked for begins to come.
    fn begins(&self) -> Result<(), Broken> {
        let is_so = (100..200).contains(&self.code);
        if is_so { Ok(()) } else { Err(self.refusal()) }
    }

    fn refusal(&self) -> Broken {
        match self.code {
            500.. => final_problem(&format!("it answers {self}")),
            _ => Broken::Passing(format!("it answers {self}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    #[test]
    fn ports_are_read_and_nothing_else_is_believed() {
        assert_eq!(
            extended_port("Entering Extended Passive Mode (|||6446|)"),
            Some(6446)
        );
        assert_eq!(passive_port("Entering Passive Mode (10,0,0,1,4,1)."), Some(1025));
        assert_eq!(passive_port("=10,0,0,1,4,1"), Some(1025));
        for wrong in ["", "(|||66666|)", "(|||6446", "(||6446|)", "|||x|"] {
            assert_eq!(extended_port(wrong), None, "{wrong}");
        }
        for wrong in ["", "(10,0,0,1,4)", "(10,0,0,1,4,256)", "(a)", "(10 0 0 1, 4,1)"] {
            assert_eq!(passive_port(wrong), None, "{wrong}");
        }
    }

    async fn heard(said: &'static [u8]) -> Result<Reply, Broken> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut there, peer) = listener.accept().await.unwrap();
        let saying = tokio::spawn(async move {
            let _ = there.write_all(said).await;
        });
        let mut control = Control {
            stream: BufReader::new(stream),
            peer,
        };
        let reply = control.reply().await;
        drop(control);
        saying.await.unwrap();
        reply
    }

    #[tokio::test]
    async fn replies_of_one_line_or_several_are_read_and_bounded() {
        let welcome = heard(b"220-Welcome\r\n220 not yet the end\n 220-x\r\n").await;
        assert_eq!(welcome.unwrap().text, "not yet the end");
        assert_eq!(heard(b"220\r\n").await.unwrap().code, 220);
        let long: &[u8] = &[b'1'; 5000];
        let endless: &[u8] = &b"220-\n".repeat(300);
        for (said, why) in [
            (b"HTTP/1.1 400 Bad Request\r\n".as_slice(), "no FTP server"),
            (long.to_vec().leak(), "too long"),
            (endless.to_vec().leak(), "too many lines"),
        ] {
            match heard(said).await {
                Err(Broken::Final(problem)) => assert!(problem.detail.contains(why), "{problem:?}"),
                other => panic!("{why}: {other:?}"),
            }
        }
        assert!(matches!(heard(b"220-a\r\n").await, Err(Broken::Passing(_))));
    }
}
