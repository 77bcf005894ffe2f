//! What can be named as an image's source.
//!
//! **Owns:** which URLs are taken. **Does not know:** whether anything is there. **Start here:** [`checked`].

use std::collections::BTreeMap;

use api::Problem;
use api::object_store as s3;
use api::object_store::StoredObject;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use model::image::ImageSource;
use percent_encoding::percent_decode_str;
use url::{Url, form_urlencoded};

/// The scheme of a file in a datastore, whose name is in the place of the host.
pub(super) const DATASTORE: &str = "datastore";
/// The scheme of a file on an FTP server.
pub(super) const FTP: &str = "ftp";
/// The scheme of a file on an NFS server.
pub(super) const NFS: &str = "nfs";
/// The longest URL that is taken.
const URL_MAX_BYTES: usize = 2048;

/// The longest signature: with temporary credentials their token is part of it.
const SIGNATURE_MAX_BYTES: usize = 8192;

/// The longest name of a region.
const REGION_MAX_BYTES: usize = 64;

/// A source in its usual form, or why it is not taken.
pub fn checked_source(source: &api::kinds::ImageSource) -> Result<ImageSource, Problem> {
    let list = source.sha256sums_url.as_deref();
    let stored = ImageSource {
        url: source.url.clone(),
        sha256sums_url: list.map(|list| checked(list).map(String::from)).transpose()?,
        s3: source.s3.as_ref().map(stored),
    };
    let url = match source.s3 {
        Some(_) => object(&stored).map(|_| Url::parse(&source.url))?,
        None => {
            return Ok(ImageSource {
                url: checked(&source.url)?.into(),
                ..stored
            });
        }
    };
    let url = url.map_err(|error| refuse(&error.to_string()))?.into();
    Ok(ImageSource { url, ..stored })
}

fn stored(store: &s3::ObjectStore) -> model::image::ObjectStore {
    model::image::ObjectStore {
        endpoint: store.endpoint.clone(),
        region: store.region.clone(),
        path_style: store.path_style,
    }
}

/// A store as it is shown: never with what lets in.
pub fn shown_store(store: &model::image::ObjectStore) -> s3::ObjectStore {
    s3::ObjectStore {
        endpoint: store.endpoint.clone(),
        region: store.region.clone(),
        path_style: store.path_style,
        signature: None,
    }
}

/// The object that a source names; `None` if it names none in a store.
fn object(source: &ImageSource) -> Result<Option<StoredObject>, Problem> {
    let Some(store) = &source.s3 else { return Ok(None) };
    if source.url.len() > URL_MAX_BYTES || store.endpoint.len() > URL_MAX_BYTES {
        return Err(refuse(&format!("it has more than {URL_MAX_BYTES} bytes")));
    }
    let is_plain = store
        .region
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    if !is_plain || store.region.is_empty() || store.region.len() > REGION_MAX_BYTES {
        return Err(refuse("the region is no region's name: give one like eu-west-1"));
    }
    let found = StoredObject::at(&source.url, &shown_store(store));
    found.map(Some).map_err(|why| refuse(&why))
}

/// The signature that a new source comes with, if it needs one.
pub fn signature(source: &api::kinds::ImageSource) -> Result<Option<&str>, Problem> {
    let Some(store) = &source.s3 else { return Ok(None) };
    let missing = || {
        let detail = "an object in a store is taken with a signature: give `source.s3.signature`, what follows the ? of a \
                      presigned URL for GET, as `sterna image import` does; what anybody may read has an https:// URL";
        Problem::invalid("signature-missing", detail)
    };
    let signature = store.signature.as_deref().ok_or_else(missing)?;
    let is_plain = signature
        .bytes()
        .all(|byte| byte.is_ascii_graphic() && byte != b'#');
    if signature.len() > SIGNATURE_MAX_BYTES || !is_plain || signature_ends(signature).is_none() {
        let detail = "source.s3.signature is not what follows the ? of a presigned URL (AWS Signature Version 4): it has \
                      X-Amz-Date, X-Amz-Expires and X-Amz-Signature";
        return Err(Problem::invalid("signature-missing", detail));
    }
    Ok(Some(signature))
}

/// Until when a signature is good.
pub(super) fn signature_ends(query: &str) -> Option<Timestamp> {
    let pairs: BTreeMap<_, _> = form_urlencoded::parse(query.as_bytes()).collect();
    pairs.get("X-Amz-Signature")?;
    let signed = DateTime::strptime("%Y%m%dT%H%M%SZ", pairs.get("X-Amz-Date")?.as_ref()).ok()?;
    let signed = signed.to_zoned(TimeZone::UTC).ok()?.timestamp();
    let valid: u32 = pairs.get("X-Amz-Expires")?.parse().ok()?;
    signed.checked_add(SignedDuration::from_secs(valid.into())).ok()
}

/// Where a source is asked, with its signature if it needs one.
pub(super) fn asked(source: &ImageSource, signature: Option<&str>) -> Result<Url, Problem> {
    match object(source)? {
        Some(object) => {
            let mut url = object.url();
            url.set_query(signature);
            Ok(url)
        }
        None => checked(&source.url),
    }
}

/// The URL in its usual form, or why it is not taken.
pub fn checked(text: &str) -> Result<Url, Problem> {
    if text.len() > URL_MAX_BYTES {
        return Err(refuse(&format!("it has more than {URL_MAX_BYTES} bytes")));
    }
    let url = Url::parse(text).map_err(|error| refuse(&error.to_string()))?;
    if url.scheme() == DATASTORE {
        check_place(&url).map_err(|why| refuse(&why))?;
        return Ok(url);
    }
    let checked = match url.scheme() {
        FTP => check_file(&url, "FTP", |c| c.is_control()),
        // What reads it takes a URL too, and its options from there.
        NFS => check_file(&url, "NFS", |c| c.is_control() || matches!(c, '?' | '%' | '#')),
        _ => check(&url),
    };
    checked.map_err(|why| refuse(&why))?;
    Ok(url)
}

/// The datastore that a URL names, if it does.
pub fn datastore(url: &Url) -> Option<&str> {
    (url.scheme() == DATASTORE).then(|| url.host_str().unwrap_or_default())
}

/// The path of the file in its datastore, or on its FTP or NFS server.
pub(super) fn path(url: &Url) -> String {
    percent_decoded(url.path().trim_start_matches('/'))
}

fn check_place(url: &Url) -> Result<(), String> {
    let is_plain = url.username().is_empty() && url.password().is_none() && url.port().is_none();
    let is_whole = url.query().is_none() && url.fragment().is_none();
    let path = path(url);
    if datastore(url).is_none_or(str::is_empty)
        || path.is_empty()
        || path.contains('\0')
        || !is_plain
        || !is_whole
    {
        return Err("it names no file in a datastore: give datastore://NAME/PATH".to_owned());
    }
    Ok(())
}

/// What holds for a URL of another server wherever it comes from. It is not repeated: there may be a password in it.
pub(super) fn check(url: &Url) -> Result<(), String> {
    if !matches!(url.scheme(), "http" | "https") {
        return Err(format!(
            "its scheme is {:?}: give an http://, https://, ftp:// or nfs:// URL, s3://BUCKET/KEY with its store, or \
             datastore://NAME/PATH",
            url.scheme()
        ));
    }
    check_secrets(url)
}

/// A path is part of what is said to a server or a program, and may not be more than that.
fn check_file(url: &Url, protocol: &str, is_refused: fn(char) -> bool) -> Result<(), String> {
    check_secrets(url)?;
    let path = path(url);
    let is_whole = url.query().is_none() && url.fragment().is_none();
    if url.host().is_none() || path.is_empty() || path.contains(is_refused) || !is_whole {
        let scheme = url.scheme();
        return Err(format!(
            "it names no file on an {protocol} server: give {scheme}://HOST/PATH"
        ));
    }
    Ok(())
}

fn check_secrets(url: &Url) -> Result<(), String> {
    if !url.username().is_empty() || url.password().is_some() {
        return Err(
            "there is a user or a password in it, which everybody who may read the image would read: \
             give one without"
                .to_owned(),
        );
    }
    Ok(())
}

fn refuse(why: &str) -> Problem {
    Problem::invalid("invalid-url", format!("the URL cannot be used: {why}"))
}

/// The URL without what follows a `?`, which may be a secret for a while.
pub(super) fn shown(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    url.set_fragment(None);
    url.to_string()
}

/// The name of the file, as a list of digests would have it.
pub(super) fn file_name(url: &Url) -> String {
    let last = url.path_segments().and_then(|mut segments| segments.next_back());
    percent_decoded(last.unwrap_or_default())
}

fn percent_decoded(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_that_are_none_or_tell_secrets_are_refused_without_being_repeated() {
        for (wrong, why) in [
            ("", "relative"),
            ("debian.qcow2", "relative"),
            ("file:///etc/shadow", "scheme"),
            ("gopher://example/", "scheme"),
            ("http://", "host"),
            ("datastore://", "datastore://NAME/PATH"),
            ("datastore://default", "datastore://NAME/PATH"),
            ("datastore://default/a?b", "datastore://NAME/PATH"),
            ("datastore://ann@default/a", "datastore://NAME/PATH"),
            ("ftp://example/", "ftp://HOST/PATH"),
            ("nfs://example/", "nfs://HOST/PATH"),
            ("nfs:///a", "nfs://HOST/PATH"),
            ("nfs://example/a?uid=0", "nfs://HOST/PATH"),
            ("nfs://example/a%3Fuid=0", "nfs://HOST/PATH"),
            ("nfs://ann@example/a", "password"),
            ("ftp://example/a%0d%0aDELE%20a", "ftp://HOST/PATH"),
            ("ftp://example/a?b", "ftp://HOST/PATH"),
            ("ftp://ann:hidden@example/a", "password"),
            ("https://ann:hidden@example/a", "password"),
            ("https://hidden@example/a", "password"),
        ] {
            let problem = checked(wrong).unwrap_err();
            assert!(problem.detail.contains(why), "{wrong}: {}", problem.detail);
            assert!(!problem.detail.contains("hidden"), "{}", problem.detail);
        }
        assert!(checked(&format!("http://a/{}", "x".repeat(3000))).is_err());
        let place = checked("datastore://default/dir/a%20b%23.raw").unwrap();
        assert_eq!(
            (datastore(&place), path(&place).as_str()),
            (Some("default"), "dir/a b#.raw")
        );
        // What it means is said as it is meant.
        assert_eq!(checked("http://0x7f.1/a").unwrap().as_str(), "http://127.0.0.1/a");
    }

    #[test]
    fn a_file_has_the_name_that_a_list_has_it_under() {
        let name = |url: &str| file_name(&Url::parse(url).unwrap());
        assert_eq!(name("https://example/a/b%20c.qcow2?token=x#y"), "b c.qcow2");
        assert_eq!(name("https://example/%zz%4"), "%zz%4");
        assert_eq!(name("https://example/a/"), "");
    }
}
