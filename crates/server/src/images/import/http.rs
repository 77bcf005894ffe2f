//! A file on an HTTP server.
//!
//! **Owns:** what is asked, and what the answer means: RFC 9110, ranges in its section 14.
//!
//! **Does not know:** when it is asked again.
//!
//! **Start here:** [`Http::open`]. Redirects are followed here, one connection each, so that every address is checked.

use std::sync::Arc;

use api::Problem;
use bytes::Bytes;
use controller::Env;
use futures_util::{StreamExt, TryStreamExt, stream};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{self, HeaderMap, HeaderName};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use model::Timestamp;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;
use url::{Position, Url};

use super::download::{Broken, Opened, SILENCE_DEADLINE};
use super::partial::Begun;
use super::reach::{Reach, final_problem};
use super::source;

/// How many redirects are followed.
const REDIRECTS_MAX: usize = 5;
/// How much of an object store's refusal is read.
const REFUSAL_MAX_BYTES: usize = 16 << 10;
const USER_AGENT: &str = concat!("sterna/", env!("CARGO_PKG_VERSION"));

/// A file at a URL.
pub(super) struct Http {
    pub(super) reach: Arc<Reach>,
    pub(super) url: Url,
    pub(super) env: Arc<dyn Env>,
}

/// What of the file is wanted: all, or what follows what has come of the same.
#[derive(Clone, Copy)]
struct Wanted<'a> {
    from: u64,
    begun: Option<&'a Begun>,
}

impl Http {
    /// Asks for the file from a byte on.
    pub(super) async fn open(&self, from: u64, begun: Option<&Begun>) -> Result<Opened, Broken> {
        let wanted = Wanted { from, begun };
        let mut url = self.url.clone();
        for _ in 0..=REDIRECTS_MAX {
            let answer = self.ask(&url, wanted).await?;
            match redirection(&url, answer.response.status(), answer.response.headers())? {
                Some(next) => url = next,
                None => {
                    let signature = self.url.query().and_then(source::signature_ends);
                    return match signature {
                        Some(ends) if is_refused(&answer, wanted) => {
                            Err(refusal(answer, ends, self.env.now()).await)
                        }
                        _ => opened(answer, wanted),
                    };
                }
            }
        }
        Err(final_problem(&format!(
            "it redirects more than {REDIRECTS_MAX} times"
        )))
    }

    async fn ask(&self, url: &Url, wanted: Wanted<'_>) -> Result<Answer, Broken> {
        let request = request(url, wanted)?;
        let stream = self.reach.connect(url).await?;
        let exchange = async {
            let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
            let connection = AbortOnDropHandle::new(tokio::spawn(async move {
                // What breaks it is told to whoever reads the answer.
                let _ = connection.await;
            }));
            let response = sender.send_request(request).await?;
            Ok(Answer { response, connection })
        };
        match timeout(SILENCE_DEADLINE, exchange).await {
            Ok(answer) => answer.map_err(|error: hyper::Error| Broken::Passing(said(&error))),
            Err(_) => Err(Broken::Passing("it did not answer".to_owned())),
        }
    }
}

/// An answer, and what carries it.
struct Answer {
    response: Response<Incoming>,
    connection: AbortOnDropHandle<()>,
}

fn request(url: &Url, wanted: Wanted<'_>) -> Result<Request<Empty<Bytes>>, Broken> {
    let host = &url[Position::BeforeHost..Position::AfterPort];
    let mut request = Request::get(&url[Position::BeforePath..Position::AfterQuery])
        .header(header::HOST, host)
        .header(header::USER_AGENT, USER_AGENT)
        .header(header::ACCEPT, "*/*")
        // The bytes of the file, not another form of them.
        .header(header::ACCEPT_ENCODING, "identity");
    if wanted.from > 0 {
        request = request.header(header::RANGE, format!("bytes={}-", wanted.from));
        if let Some(validator) = wanted.begun.and_then(|begun| begun.validator.as_ref()) {
            request = request.header(header::IF_RANGE, validator);
        }
    }
    request
        .body(Empty::new())
        .map_err(|error| final_problem(&format!("it cannot be asked for: {error}")))
}

/// Where an answer sends on to.
fn redirection(url: &Url, status: StatusCode, headers: &HeaderMap) -> Result<Option<Url>, Broken> {
    if !matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308) {
        return Ok(None);
    }
    let refuse = |why: &str| final_problem(&format!("it redirects to where nothing is taken from: {why}"));
    let location = text(headers, &header::LOCATION).ok_or_else(|| refuse("it does not say where"))?;
    let next = url.join(location).map_err(|error| refuse(&error.to_string()))?;
    source::check(&next).map_err(|why| refuse(&why))?;
    if url.scheme() == "https" && next.scheme() != "https" {
        return Err(refuse(
            "from https:// to http://, which others may read and change",
        ));
    }
    Ok(Some(next))
}

fn is_refused(answer: &Answer, wanted: Wanted<'_>) -> bool {
    let (status, headers) = (answer.response.status(), answer.response.headers());
    status.is_client_error() && matches!(judged(status, headers, wanted), Err(Broken::Final(_)))
}

/// Why an object store does not give an object for a signature that is good until then, and what leads on.
async fn refusal(answer: Answer, ends: Timestamp, now: Timestamp) -> Broken {
    let status = answer.response.status();
    if now > ends {
        let detail =
            format!("the signature was good until {ends}: give the import again, which signs it anew");
        return Broken::Final(Problem::invalid("signature-expired", detail));
    }
    let body = Limited::new(answer.response.into_body(), REFUSAL_MAX_BYTES).collect();
    let body = match timeout(SILENCE_DEADLINE, body).await {
        Ok(Ok(body)) => String::from_utf8_lossy(&body.to_bytes()).into_owned(),
        _ => String::new(),
    };
    let code = error_code(&body);
    let remedy = match code {
        "NoSuchKey" | "NoSuchBucket" => "look at the names of the bucket and the object",
        "RequestTimeTooSkewed" => "the clock of the machine that signed differs from the store's",
        _ => "look at the credentials, what they may read, the region, and the style of the bucket's URL",
    };
    final_problem(&format!(
        "it answers {status} {code}: {remedy}; the signature is good until {ends}"
    ))
}

/// The code in an object store's answer, which has more that nobody shall see: what was signed, for one.
fn error_code(body: &str) -> &str {
    let found = body
        .split_once("<Code>")
        .and_then(|(_, rest)| rest.split_once("</Code>"));
    let is_word = |code: &&str| code.len() <= 64 && code.bytes().all(|byte| byte.is_ascii_alphanumeric());
    found.map(|(code, _)| code).filter(is_word).unwrap_or_default()
}

/// What an answer that is no redirect means.
fn opened(answer: Answer, wanted: Wanted<'_>) -> Result<Opened, Broken> {
    let Answer { response, connection } = answer;
    let begun = judged(response.status(), response.headers(), wanted)?;
    let body = response.into_body().into_data_stream();
    let body = body.map_err(|error| said(&error));
    // The connection lasts as long as it is read from.
    let bytes = stream::unfold((body, connection), |(mut body, connection)| async move {
        Some((body.next().await?, (body, connection)))
    });
    Ok(Opened {
        begun,
        bytes: bytes.boxed(),
    })
}

/// What is going to come.
fn judged(status: StatusCode, headers: &HeaderMap, wanted: Wanted<'_>) -> Result<Begun, Broken> {
    let changed = |why: &str| Err(Broken::Changed(why.to_owned()));
    match status {
        StatusCode::OK if wanted.from == 0 => Ok(Begun {
            validator: validator(headers),
            bytes_total: text(headers, &header::CONTENT_LENGTH).and_then(|bytes| bytes.parse().ok()),
        }),
        StatusCode::OK => changed("it sends the file from its beginning again"),
        StatusCode::PARTIAL_CONTENT if wanted.from > 0 => part(headers, wanted),
        StatusCode::RANGE_NOT_SATISFIABLE if wanted.from > 0 => changed("it has become shorter"),
        // Too late, too early, too many; and what is wrong with the server, not with the request.
        status if matches!(status.as_u16(), 408 | 425 | 429) || status.is_server_error() => {
            Err(Broken::Passing(format!("it answers {status}")))
        }
        status => Err(final_problem(&format!("it answers {status}"))),
    }
}

/// A part is taken only if it is the one that was asked for, of the file that was begun.
fn part(headers: &HeaderMap, wanted: Wanted<'_>) -> Result<Begun, Broken> {
    let said = text(headers, &header::CONTENT_RANGE).unwrap_or_default();
    let begun = wanted.begun.cloned().unwrap_or_default();
    let Some((_, total)) = range(said).filter(|(first, _)| *first == wanted.from) else {
        return Err(final_problem(&format!(
            "it answers with another part of the file ({said:?}) than the one that begins at {}",
            wanted.from
        )));
    };
    let is_other = |new: Option<u64>| new.zip(begun.bytes_total).is_some_and(|(new, old)| new != old);
    let new = validator(headers);
    if is_other(total) || new.is_some() && new != begun.validator {
        return Err(Broken::Changed("it has become another file".to_owned()));
    }
    Ok(begun)
}

/// The first byte and the size of the whole, of `bytes 5-9/10`.
fn range(text: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
    let total = match total {
        "*" => None,
        total => Some(total.parse().ok()?),
    };
    (first <= last && total.is_none_or(|total: u64| last < total)).then_some((first, total))
}

/// By what the file is known to be the same later: its strong tag, or when it was changed.
fn validator(headers: &HeaderMap) -> Option<String> {
    let tag = text(headers, &header::ETAG).filter(|tag| tag.starts_with('"'));
    let found = tag.or_else(|| text(headers, &header::LAST_MODIFIED));
    found.map(str::to_owned)
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// The innermost cause: the others only say that there is one.
fn said(error: &(dyn std::error::Error + 'static)) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(all: &[(HeaderName, &str)]) -> HeaderMap {
        let all = all
            .iter()
            .map(|(name, value)| (name.clone(), value.parse().unwrap()));
        all.collect()
    }

    #[test]
    fn ranges_are_read_as_they_are_written() {
        assert_eq!(range("bytes 5-9/10"), Some((5, Some(10))));
        assert_eq!(range("bytes 5-9/*"), Some((5, None)));
        for wrong in [
            "",
            "bytes */10",
            "bytes 9-5/10",
            "bytes 5-10/10",
            "bits 5-9/10",
            "bytes 5-9",
            "bytes -5-9/10",
        ] {
            assert_eq!(range(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_part_counts_only_if_it_is_the_one_that_was_asked_for() {
        let begun = Begun {
            validator: Some("\"v1\"".to_owned()),
            bytes_total: Some(10),
        };
        let wanted = Wanted {
            from: 5,
            begun: Some(&begun),
        };
        let judge = |status: u16, all: &[(HeaderName, &str)]| {
            judged(StatusCode::from_u16(status).unwrap(), &headers(all), wanted)
        };
        let range = |text| (header::CONTENT_RANGE, text);
        assert_eq!(judge(206, &[range("bytes 5-9/10")]).unwrap(), begun);
        let other = [range("bytes 5-9/10"), (header::ETAG, "\"v2\"")];
        for changed in [
            judge(206, &other),
            judge(206, &[range("bytes 5-9/11")]),
            judge(200, &[]),
            judge(416, &[]),
        ] {
            assert!(matches!(changed, Err(Broken::Changed(_))), "{changed:?}");
        }
        for lie in [
            judge(206, &[]),
            judge(206, &[range("bytes 0-9/10")]),
            judge(404, &[]),
        ] {
            assert!(matches!(lie, Err(Broken::Final(_))), "{lie:?}");
        }
        for passing in [judge(503, &[]), judge(429, &[])] {
            assert!(matches!(passing, Err(Broken::Passing(_))), "{passing:?}");
        }
    }

    #[test]
    fn a_weak_tag_does_not_say_that_bytes_are_the_same() {
        let weak = [(header::ETAG, "W/\"v1\"")];
        assert_eq!(validator(&headers(&weak)), None);
        let dated = [
            weak[0].clone(),
            (header::LAST_MODIFIED, "Sun, 22 Nov 2026 08:00:00 GMT"),
        ];
        assert_eq!(
            validator(&headers(&dated)).as_deref(),
            Some("Sun, 22 Nov 2026 08:00:00 GMT")
        );
    }

    #[test]
    fn redirects_lead_to_http_only_and_never_out_of_tls() {
        let to = |from: &str, location: &str| {
            let headers = headers(&[(header::LOCATION, location)]);
            redirection(&Url::parse(from).unwrap(), StatusCode::FOUND, &headers)
                .map(|url| url.unwrap().to_string())
        };
        assert_eq!(to("http://a/b", "/c?d").unwrap(), "http://a/c?d");
        assert_eq!(to("http://a/b", "https://c/").unwrap(), "https://c/");
        for refused in ["file:///etc/passwd", "http://ann:x@c/", "http://["] {
            assert!(to("http://a/b", refused).is_err(), "{refused}");
        }
        assert!(to("https://a/b", "http://a/b").is_err());
    }
}
