//! A source's content as one stream, whatever happens to connections meanwhile.
//!
//! **Owns:** when it is tried again, from where, and when that is given up.
//!
//! **Does not know:** what becomes of the bytes.
//!
//! **Start here:** [`Download::bytes`].

use std::io;
use std::time::Duration;

use api::Problem;
use bytes::Bytes;
use futures_util::stream::{self, BoxStream};
use futures_util::{StreamExt, TryStreamExt};
use model::image::ImportProgress;
use tokio::time::{Instant, sleep, timeout};
use url::Url;

use super::origin::Origin;
use super::partial::{Begun, Partial};
use super::source;
use crate::images::take::{Source, too_large};
use crate::routes::App;

/// How long a source may be silent.
pub(super) const SILENCE_DEADLINE: Duration = Duration::from_secs(60);
/// How often in a row a source is tried without much having come.
const TRIES_MAX: u32 = 8;
/// What has to come for a connection to count as a good one.
const GOOD_BYTES: u64 = 1 << 20;
/// The first pause before it is tried again; each is twice the one before.
const PAUSE_MIN: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// How often is told how far it is.
const TELL_EVERY: Duration = Duration::from_millis(200);
/// The code of what ends a download that may begin again.
pub(super) const CHANGED: &str = "source-changed";

/// A source that answered.
pub(super) struct Opened {
    /// What it says of the whole content.
    pub(super) begun: Begun,
    /// What comes, or why no more does.
    pub(super) bytes: BoxStream<'static, Result<Bytes, String>>,
}

impl std::fmt::Debug for Opened {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Opened")
            .field("begun", &self.begun)
            .finish_non_exhaustive()
    }
}

/// Why a source did not answer with its content.
#[derive(Debug)]
pub(super) enum Broken {
    /// It may when it is tried again.
    Passing(String),
    /// What came of it before is of no use any more.
    Changed(String),
    /// It never will.
    Final(Problem),
}

impl Broken {
    /// The same where it is over anyhow.
    pub(super) fn into_words(self) -> String {
        match self {
            Self::Passing(why) | Self::Changed(why) => why,
            Self::Final(problem) => problem.detail,
        }
    }
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Self {
        Self::Passing(error.to_string())
    }
}

/// Who is told how far it is.
pub(super) type Tell = Box<dyn Fn(ImportProgress) + Send + Sync>;

/// A download under way.
pub(super) struct Download {
    origin: Origin,
    /// Where it comes from, for people.
    shown: String,
    /// Notes what is about to come, if it is to outlive the server.
    partial: Option<Partial>,
    tell: Tell,
    /// Between 0 and 1: many that were broken at once do not come back at once.
    jitter: f64,
    bytes_max: u64,
    begun: Option<Begun>,
    at: u64,
    open: Option<BoxStream<'static, Result<Bytes, String>>>,
    tries: u32,
    good_from: u64,
    told: Option<Instant>,
}

impl Download {
    /// Of a whole file, of which no more than so much is taken.
    pub(super) fn of(app: &App, url: &Url, bytes_max: u64, tell: Tell) -> Result<Self, Problem> {
        Ok(Self {
            shown: source::shown(url),
            origin: Origin::of(app, url)?,
            partial: None,
            tell,
            jitter: jitter(app),
            bytes_max,
            begun: None,
            at: 0,
            open: None,
            tries: 0,
            good_from: 0,
            told: None,
        })
    }

    /// What has come before is in these files. How much that is.
    pub(super) fn go_on(&mut self, partial: &Partial, has_digest: bool) -> u64 {
        if let Some((begun, bytes)) = partial.held(has_digest) {
            (self.begun, self.at, self.good_from) = (Some(begun), bytes, bytes);
        }
        self.partial = Some(partial.clone());
        self.at
    }

    /// What comes of it, to its end.
    pub(super) fn bytes(self) -> Source<'static> {
        let all = stream::try_unfold(self, |mut download| async move {
            let next = download.next().await?;
            Ok(next.map(|bytes| (bytes, download)))
        });
        all.boxed()
    }

    async fn next(&mut self) -> Result<Option<Bytes>, Problem> {
        loop {
            let Some(open) = &mut self.open else {
                if self.is_whole() {
                    return Ok(None);
                }
                self.begin().await?;
                continue;
            };
            let why = match timeout(SILENCE_DEADLINE, open.try_next()).await {
                Ok(Ok(Some(bytes))) => return self.came(bytes).map(Some),
                Ok(Ok(None)) if self.total().is_none() => return Ok(None),
                Ok(Ok(None)) if self.is_whole() => return Ok(None),
                Ok(Ok(None)) => "it ended early".to_owned(),
                Ok(Err(why)) => why,
                Err(_) => format!("nothing came for {} s", SILENCE_DEADLINE.as_secs()),
            };
            self.open = None;
            self.pause(why).await?;
            if self.begun.as_ref().is_none_or(|begun| begun.validator.is_none()) {
                return Err(self.changed("it does not say whether it is still the same file"));
            }
        }
    }

    fn total(&self) -> Option<u64> {
        self.begun.as_ref()?.bytes_total
    }

    fn is_whole(&self) -> bool {
        self.total() == Some(self.at)
    }

    /// Opens the source, or pauses before that is tried again.
    async fn begin(&mut self) -> Result<(), Problem> {
        match self.origin.open(self.at, self.begun.as_ref()).await {
            Ok(opened) => {
                if opened
                    .begun
                    .bytes_total
                    .is_some_and(|total| total > self.bytes_max)
                {
                    return Err(too_large());
                }
                if let Some(partial) = self.partial.as_ref().filter(|_| self.at == 0) {
                    partial.begin(&opened.begun);
                }
                (self.begun, self.open) = (Some(opened.begun), Some(opened.bytes));
                self.tell(None);
                Ok(())
            }
            Err(Broken::Passing(why)) => self.pause(why).await,
            Err(Broken::Changed(why)) => Err(self.changed(&why)),
            Err(Broken::Final(problem)) => {
                let detail = format!("{}: {}", self.shown, problem.detail);
                Err(Problem { detail, ..problem })
            }
        }
    }

    fn came(&mut self, bytes: Bytes) -> Result<Bytes, Problem> {
        self.at = self.at.saturating_add(bytes.len() as u64);
        if self.at > self.bytes_max {
            return Err(too_large());
        }
        if self.total().is_some_and(|total| self.at > total) {
            let detail = format!("{}: it sends more than it said that there is", self.shown);
            return Err(Problem::invalid("source-refused", detail));
        }
        if self.at.saturating_sub(self.good_from) >= GOOD_BYTES {
            (self.good_from, self.tries) = (self.at, 0);
        }
        if self.told.is_none_or(|told| told.elapsed() >= TELL_EVERY) {
            self.tell(None);
        }
        Ok(bytes)
    }

    /// Waits before it is tried again, or gives up.
    async fn pause(&mut self, why: String) -> Result<(), Problem> {
        self.tries = self.tries.saturating_add(1);
        if self.tries >= TRIES_MAX {
            let detail = format!(
                "{}: {why}; it was tried {TRIES_MAX} times: look whether it can be reached from the server",
                self.shown
            );
            return Err(Problem::new(503, "source-unreachable", detail));
        }
        self.tell(Some(why));
        let doubled = PAUSE_MIN.saturating_mul(1 << self.tries.min(16));
        sleep(doubled.min(PAUSE_MAX).mul_f64(0.5 + self.jitter / 2.0)).await;
        Ok(())
    }

    fn changed(&self, why: &str) -> Problem {
        let detail = format!("{}: the import cannot go on where it was: {why}", self.shown);
        Problem::new(503, CHANGED, detail)
    }

    fn tell(&mut self, trouble: Option<String>) {
        self.told = Some(Instant::now());
        (self.tell)(ImportProgress {
            bytes_done: self.at,
            bytes_total: self.total(),
            trouble,
        });
    }
}

/// Between 0 and 1, from where ids have their chance.
fn jitter(app: &App) -> f64 {
    let (_, chance) = app.env.next_id().as_u64_pair();
    f64::from((chance & 0xffff) as u16) / 65536.0
}
