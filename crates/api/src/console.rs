//! A guest's console as a stream, for those who dial: people's clients and agents.
//!
//! It is a WebSocket (RFC 6455). Binary messages are the console's bytes, in either direction. Text messages are words for
//! the person at it. The reason of its close says why it ended.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use reqwest::{RequestBuilder, Response, StatusCode, Upgraded, header};
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};

/// The largest message.
pub const MESSAGE_MAX_BYTES: usize = 64 << 10;
/// The longest reason of a close (RFC 6455, section 5.5).
pub const REASON_MAX_BYTES: usize = 123;
/// How long the other side may take to take a message.
pub const SEND_PATIENCE: Duration = Duration::from_secs(10);
/// How often the server shows that it is there.
pub const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// After so long without anything the other side counts as lost.
const SILENCE_MAX: Duration = Duration::from_secs(40);

/// What comes over it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// The console's.
    Bytes(Vec<u8>),
    /// Words for the person at it.
    Notice(String),
    /// Nothing comes any more, for this reason; it is empty if there is nothing to say.
    Ended(String),
}

/// Why there is no stream.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The connection.
    #[error("the connection failed")]
    Http(#[from] reqwest::Error),
    /// Another answer than the switch to the other protocol.
    #[error("the server answered {}", .0.status())]
    Refused(Box<Response>),
    /// Somebody in between does not know the protocol.
    #[error(
        "what answered is no server of this release: is there a proxy that does not let WebSockets through?"
    )]
    NotUnderstood,
}

/// One end of the stream.
#[derive(Debug)]
pub struct Console(WebSocketStream<Upgraded>);

impl Console {
    /// Dials. The request says where, and shows who we are.
    pub async fn dial(request: RequestBuilder) -> Result<Self, DialError> {
        let key = generate_key();
        let request = request
            .header(header::CONNECTION, "Upgrade")
            .header(header::UPGRADE, "websocket")
            .header(header::SEC_WEBSOCKET_VERSION, "13")
            .header(header::SEC_WEBSOCKET_KEY, &key);
        let answer = request.send().await?;
        if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(DialError::Refused(Box::new(answer)));
        }
        let accepted = answer.headers().get(header::SEC_WEBSOCKET_ACCEPT);
        if accepted.is_none_or(|accepted| *accepted != derive_accept_key(key.as_bytes())) {
            return Err(DialError::NotUnderstood);
        }
        let stream = answer.upgrade().await?;
        let config = WebSocketConfig::default().max_message_size(Some(MESSAGE_MAX_BYTES));
        Ok(Self(
            WebSocketStream::from_raw_socket(stream, Role::Client, Some(config)).await,
        ))
    }

    /// What comes next. It may be called again after the future was dropped.
    pub async fn next(&mut self) -> Said {
        loop {
            let message = match timeout(SILENCE_MAX, self.0.next()).await {
                Ok(Some(Ok(message))) => message,
                Ok(Some(Err(_)) | None) => return Said::Ended("the connection was lost".to_owned()),
                Err(_) => return Said::Ended(format!("nothing was heard for {} s", SILENCE_MAX.as_secs())),
            };
            match message {
                Message::Binary(bytes) => return Said::Bytes(bytes.into()),
                Message::Text(text) => return Said::Notice(text.to_string()),
                Message::Close(frame) => {
                    return Said::Ended(frame.map_or_else(String::new, |frame| frame.reason.to_string()));
                }
                _ => {}
            }
        }
    }

    /// Sends bytes; whether they were taken in time.
    pub async fn send(&mut self, bytes: Vec<u8>) -> bool {
        self.message(Message::Binary(bytes.into())).await
    }

    /// Sends words for the person at the other end; whether they were taken in time.
    pub async fn notice(&mut self, text: String) -> bool {
        self.message(Message::Text(text.into())).await
    }

    /// Ends the stream.
    pub async fn end(mut self, reason: &str) {
        let frame = CloseFrame {
            code: CloseCode::Normal,
            reason: short(reason).into(),
        };
        self.message(Message::Close(Some(frame))).await;
    }

    async fn message(&mut self, message: Message) -> bool {
        matches!(timeout(SEND_PATIENCE, self.0.send(message)).await, Ok(Ok(())))
    }
}

/// As much of a reason as a close holds.
pub fn short(reason: &str) -> &str {
    &reason[..reason.floor_char_boundary(REASON_MAX_BYTES)]
}
