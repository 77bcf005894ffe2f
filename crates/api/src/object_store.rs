//! Objects in stores that speak S3, as sources of images.
//!
//! **Owns:** from `s3://BUCKET/KEY` and a store to the URL that is asked, and what signs the asking.
//!
//! **Does not know:** who asks: a client signs, a server asks with the signature and never sees credentials.
//!
//! **Start here:** [`StoredObject::at`]. The signature is the query of a presigned URL (AWS Signature Version 4), which lets
//! whoever has it read this one object until its time is over.

use std::time::Duration;

use jiff::Timestamp;
use percent_encoding::percent_decode_str;
use rusty_s3::{Bucket, S3Action, UrlStyle};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use url::Url;

pub use rusty_s3::Credentials;

/// The scheme of objects' URLs.
pub const SCHEME: &str = "s3";
/// The region of stores that have none.
pub const REGION: &str = "us-east-1";
/// How long a signature of [`StoredObject::signature`] is good for: as long as an import may take.
pub const VALID_FOR: Duration = Duration::from_secs(24 * 3600);

/// The store that an object is in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ObjectStore {
    /// The `http://` or `https://` URL of the store.
    pub endpoint: String,
    /// The region that requests are signed for.
    pub region: String,
    /// Whether the bucket stands in the path of its objects' URLs, and not before the host's name.
    pub path_style: bool,
    /// What follows the `?` of the object's presigned URL for `GET`. It is kept apart until the import ends, and never shown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signature: Option<String>,
}

impl Default for ObjectStore {
    fn default() -> Self {
        Self {
            endpoint: String::new(),
            region: REGION.to_owned(),
            path_style: false,
            signature: None,
        }
    }
}

/// An object in a bucket.
#[derive(Debug, Clone)]
pub struct StoredObject {
    bucket: Bucket,
    key: String,
}

impl StoredObject {
    /// The object that an `s3://BUCKET/KEY` names in a store, or why there is none.
    pub fn at(url: &str, store: &ObjectStore) -> Result<Self, String> {
        let named = || "it names no object: give s3://BUCKET/KEY".to_owned();
        let url = Url::parse(url).map_err(|error| error.to_string())?;
        let is_plain = url.username().is_empty() && url.password().is_none() && url.port().is_none();
        let is_whole = url.query().is_none() && url.fragment().is_none();
        if url.scheme() != SCHEME || !is_plain || !is_whole {
            return Err(named());
        }
        let bucket = url
            .host_str()
            .filter(|bucket| !bucket.is_empty())
            .ok_or_else(named)?;
        let path = percent_decode_str(url.path().strip_prefix('/').unwrap_or_default());
        let key = path.decode_utf8().map_err(|_| named())?.into_owned();
        // In a URL these would lead to another object.
        let leads_away = key.split('/').any(|part| matches!(part, "." | ".."));
        if key.is_empty() || key.contains(char::is_control) || leads_away {
            return Err(named());
        }
        let style = if store.path_style {
            UrlStyle::Path
        } else {
            UrlStyle::VirtualHost
        };
        let bucket = Bucket::new(
            endpoint(&store.endpoint)?,
            style,
            bucket.to_owned(),
            store.region.clone(),
        );
        let bucket = bucket.map_err(|_| {
            "this bucket cannot stand before the endpoint's name, which may be an address: have it stand in the path \
             (path_style, --path-style)"
                .to_owned()
        })?;
        Ok(Self { bucket, key })
    }

    /// Where it is asked for, if nobody had to sign that.
    pub fn url(&self) -> Url {
        self.bucket.object_url(&self.key)
    }

    /// What lets whoever has it read the object for [`VALID_FOR`].
    pub fn signature(&self, credentials: &Credentials, now: &Timestamp) -> String {
        let action = self.bucket.get_object(Some(credentials), &self.key);
        let signed = action.sign_with_time(VALID_FOR, now);
        signed.query().unwrap_or_default().to_owned()
    }
}

fn endpoint(text: &str) -> Result<Url, String> {
    let wrong = |why: &str| {
        format!("the endpoint {why}: give the store's URL, as in https://s3.eu-west-1.amazonaws.com")
    };
    // What is wrong with a URL is not repeated: there may be a password in it.
    let url = Url::parse(text).map_err(|error| wrong(&format!("is no URL ({error})")))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(wrong("is no http:// or https:// URL"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(wrong("has a user or a password in it"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(wrong("has something behind its path"));
    }
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(endpoint: &str, path_style: bool) -> ObjectStore {
        ObjectStore {
            endpoint: endpoint.to_owned(),
            path_style,
            ..ObjectStore::default()
        }
    }

    #[test]
    fn an_object_is_asked_for_in_either_style() {
        for (url, endpoint, path_style, asked) in [
            (
                "s3://images/debian/13.qcow2",
                "https://s3.eu-west-1.amazonaws.com",
                false,
                "https://images.s3.eu-west-1.amazonaws.com/debian/13.qcow2",
            ),
            (
                "s3://images/a%20b%23c.raw",
                "http://192.0.2.7:9000/s3",
                true,
                "http://192.0.2.7:9000/s3/images/a%20b%23c.raw",
            ),
            ("s3://images/a b?", "http://s3/", true, ""),
        ] {
            let found =
                StoredObject::at(url, &store(endpoint, path_style)).map(|object| object.url().to_string());
            assert_eq!(found.unwrap_or_default(), asked);
        }
    }

    #[test]
    fn what_names_no_object_is_refused_without_its_secrets() {
        for (url, endpoint, path_style, why) in [
            ("s3://", "http://s3", true, "s3://BUCKET/KEY"),
            ("s3://images", "http://s3", true, "s3://BUCKET/KEY"),
            ("s3://images/", "http://s3", true, "s3://BUCKET/KEY"),
            ("s3://images/a%2F..%2Fb", "http://s3", true, "s3://BUCKET/KEY"),
            ("s3://images/a%0ab", "http://s3", true, "s3://BUCKET/KEY"),
            ("s3://hidden@images/a", "http://s3", true, "s3://BUCKET/KEY"),
            ("s3://images/a", "", true, "endpoint"),
            ("s3://images/a", "ftp://s3", true, "endpoint"),
            ("s3://images/a", "http://ann:hidden@s3", true, "password"),
            ("s3://images/a", "http://s3/?hidden", true, "behind its path"),
            ("s3://images/a", "http://192.0.2.7", false, "--path-style"),
        ] {
            let refused = StoredObject::at(url, &store(endpoint, path_style)).unwrap_err();
            assert!(
                refused.contains(why) && !refused.contains("hidden"),
                "{url}: {refused}"
            );
        }
    }

    /// The example of AWS's documentation, "Authenticating Requests: Using Query Parameters".
    #[test]
    fn the_signature_is_the_one_of_the_specification() {
        let store = store("https://s3.amazonaws.com", false);
        let object = StoredObject::at("s3://examplebucket/test.txt", &store).unwrap();
        let credentials =
            Credentials::new("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY");
        let signature = object.signature(&credentials, &"2013-05-24T00:00:00Z".parse().unwrap());
        assert!(
            signature.ends_with(
                "X-Amz-Signature=aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404"
            ),
            "{signature}"
        );
    }
}
