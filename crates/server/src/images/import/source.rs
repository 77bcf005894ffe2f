//! What can be named as an image's source.
//!
//! **Owns:** which URLs are taken. **Does not know:** whether anything is there. **Start here:** [`checked`].

use api::Problem;
use percent_encoding::percent_decode_str;
use url::Url;

/// The scheme of a file in a datastore, whose name is in the place of the host.
pub(super) const DATASTORE: &str = "datastore";
/// The scheme of a file on an FTP server.
pub(super) const FTP: &str = "ftp";
/// The longest URL that is taken.
const URL_MAX_BYTES: usize = 2048;

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
    let checked = if url.scheme() == FTP {
        check_ftp(&url)
    } else {
        check(&url)
    };
    checked.map_err(|why| refuse(&why))?;
    Ok(url)
}

/// The datastore that a URL names, if it does.
pub fn datastore(url: &Url) -> Option<&str> {
    (url.scheme() == DATASTORE).then(|| url.host_str().unwrap_or_default())
}

/// The path of the file in its datastore, or on its FTP server.
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
            "its scheme is {:?}: give an http://, https:// or ftp:// URL, or datastore://NAME/PATH",
            url.scheme()
        ));
    }
    check_secrets(url)
}

/// A path is part of a command, which is a line.
fn check_ftp(url: &Url) -> Result<(), String> {
    check_secrets(url)?;
    let path = path(url);
    let is_whole = url.query().is_none() && url.fragment().is_none();
    if url.host().is_none() || path.is_empty() || path.contains(char::is_control) || !is_whole {
        return Err("it names no file on an FTP server: give ftp://HOST/PATH".to_owned());
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
