//! Lines of bounded length from a byte stream.
//!
//! *Owns:* the buffer and its bound. *Does not know:* what a line means, or how long to wait for one.
//! *Start here:* [`LineReader::next_line`].

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt};

/// Reads lines of at most `line_bytes_max`, whatever the other side sends. Dropping a pending read loses nothing.
#[derive(Debug)]
pub(crate) struct LineReader<R> {
    stream: R,
    buffer: Vec<u8>,
    searched: usize,
    line_bytes_max: usize,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum LineError {
    #[error("the line is longer than {line_bytes_max} bytes")]
    TooLong { line_bytes_max: usize },
    #[error("the stream ended in the middle of a line")]
    Torn,
    #[error("reading failed")]
    Io(#[source] io::Error),
}

impl<R: AsyncRead + Unpin> LineReader<R> {
    pub(crate) fn new(stream: R, line_bytes_max: usize) -> Self {
        Self {
            stream,
            buffer: Vec::new(),
            searched: 0,
            line_bytes_max,
        }
    }

    /// The next line without its end, or `None` when the stream ends between lines.
    pub(crate) async fn next_line(&mut self) -> Result<Option<Vec<u8>>, LineError> {
        self.next_until(b'\n').await
    }

    /// The next bytes up to `delimiter`, which is dropped. Cancel-safe: what was read stays in the buffer.
    pub(crate) async fn next_until(&mut self, delimiter: u8) -> Result<Option<Vec<u8>>, LineError> {
        loop {
            let unsearched = &self.buffer[self.searched..];
            if let Some(at) = unsearched.iter().position(|&byte| byte == delimiter) {
                let rest = self.buffer.split_off(self.searched + at + 1);
                let mut line = std::mem::replace(&mut self.buffer, rest);
                line.pop();
                self.searched = 0;
                return Ok(Some(line));
            }
            self.searched = self.buffer.len();
            if self.buffer.len() > self.line_bytes_max {
                let line_bytes_max = self.line_bytes_max;
                return Err(LineError::TooLong { line_bytes_max });
            }
            let read = self.stream.read_buf(&mut self.buffer).await;
            match read.map_err(LineError::Io)? {
                0 if self.buffer.is_empty() => return Ok(None),
                0 => return Err(LineError::Torn),
                _ => {}
            }
        }
    }

    /// Forgets what was read so far and was not consumed.
    pub(crate) fn clear(&mut self) {
        self.buffer.clear();
        self.searched = 0;
    }

    pub(crate) fn stream_mut(&mut self) -> &mut R {
        &mut self.stream
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_come_one_by_one_and_a_torn_end_is_named() {
        let mut reader = LineReader::new(&b"one\n\ntwo\nthr"[..], 16);
        assert_eq!(reader.next_line().await.unwrap().unwrap(), b"one");
        assert_eq!(reader.next_line().await.unwrap().unwrap(), b"");
        assert_eq!(reader.next_line().await.unwrap().unwrap(), b"two");
        assert!(matches!(reader.next_line().await, Err(LineError::Torn)));
    }

    #[tokio::test]
    async fn an_endless_line_is_refused_within_its_bound() {
        let mut reader = LineReader::new(tokio::io::repeat(b'x'), 1000);
        assert!(matches!(
            reader.next_line().await,
            Err(LineError::TooLong { line_bytes_max: 1000 })
        ));
        assert!(reader.buffer.capacity() < 16 * 1024);
    }
}
