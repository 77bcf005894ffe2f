//! Where a file is, by the scheme of its URL.

use std::sync::Arc;

use api::Problem;
use model::Kind;
use url::Url;

use super::download::{Broken, Opened};
use super::ftp::Ftp;
use super::http::Http;
use super::nfs::Nfs;
use super::partial::Begun;
use super::place::Place;
use super::source::{self, DATASTORE, FTP, NFS};
use crate::auth::PROJECT;
use crate::routes::App;

/// A file that can be read, from any byte on where the server there can.
pub(super) enum Origin {
    Http(Http),
    Ftp(Ftp),
    Nfs(Nfs),
    Place(Place),
}

impl Origin {
    /// What a checked URL names.
    pub(super) fn of(app: &App, url: &Url) -> Result<Self, Problem> {
        let (reach, url) = (Arc::clone(&app.reach), url.clone());
        match url.scheme() {
            DATASTORE => Self::in_datastore(app, &url),
            FTP => Ok(Self::Ftp(Ftp { reach, url })),
            NFS => Ok(Self::Nfs(Nfs { reach, url })),
            _ => Ok(Self::Http(Http {
                reach,
                url,
                env: Arc::clone(&app.env),
            })),
        }
    }

    fn in_datastore(app: &App, url: &Url) -> Result<Self, Problem> {
        let name = url.host_str().unwrap_or_default();
        let view = app.cache.view();
        let project = (!Kind::Datastore.is_cloud_wide()).then_some(PROJECT);
        let id = view.find(Kind::Datastore, project, name);
        let found = id.and_then(|id| view.datastores.get(&id));
        let found = found.ok_or_else(|| Problem::not_found(Kind::Datastore, name))?;
        Ok(Self::Place(Place {
            directory: found.value.spec.path.clone().into(),
            path: source::path(url),
        }))
    }

    /// Opens it at a byte, behind what has come of the same.
    pub(super) async fn open(&self, from: u64, begun: Option<&Begun>) -> Result<Opened, Broken> {
        match self {
            Self::Http(http) => http.open(from, begun).await,
            Self::Ftp(ftp) => ftp.open(from, begun).await,
            Self::Nfs(nfs) => nfs.open(from).await,
            Self::Place(place) => place.open(from, begun).await,
        }
    }
}
