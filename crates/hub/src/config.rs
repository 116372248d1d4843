//! Where the hub is, who we are, and where the cache lies: read from the hub's own variables.
//!
//! The meaning of `HF_ENDPOINT`, `HF_TOKEN`, `HF_TOKEN_PATH`, `HF_HOME`, `HF_HUB_CACHE` and
//! `XDG_CACHE_HOME` is that of the hub's Python client (documentation: huggingface_hub, package
//! reference, environment variables), so one cache and one login serve both.

use crate::error::{Error, IoContext, Result};
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What a [`crate::Hub`] needs to know.
#[derive(Debug, Clone)]
pub struct Config {
    /// Base address of the hub, `https://huggingface.co` unless configured.
    pub endpoint: String,
    /// Sent to the endpoint and to no other host.
    pub token: Option<Token>,
    /// The cache directory, which holds `models--ORG--REPO` folders.
    pub cache: PathBuf,
    /// Attempts without any progress before giving up.
    pub attempts: u32,
    /// Wait before the second attempt; doubles with each further one, up to a minute.
    pub backoff: Duration,
    /// How long a connection may stay silent before it counts as broken.
    pub silence: Duration,
    /// Whether `HTTPS_PROXY`, `HTTP_PROXY` and `NO_PROXY` are honoured.
    pub system_proxy: bool,
}

/// A secret that authenticates to the hub; never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// A token from text; surrounding white space is dropped.
    ///
    /// # Errors
    /// [`Error::Invalid`] if it holds anything but visible ASCII, which no header could carry.
    pub fn new(text: &str) -> Result<Self> {
        let text = text.trim();
        if text.is_empty() || !text.bytes().all(|b| b.is_ascii_graphic()) {
            let why = "a token is visible ASCII without spaces";
            return Err(Error::Invalid { what: "token", value: "(not shown)".into(), why });
        }
        Ok(Token(text.into()))
    }

    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

impl Config {
    /// The public hub without a token, with this cache directory.
    pub fn new(cache: impl Into<PathBuf>) -> Self {
        Config {
            endpoint: "https://huggingface.co".into(),
            token: None,
            cache: cache.into(),
            attempts: 6,
            backoff: Duration::from_millis(500),
            silence: Duration::from_secs(30),
            system_proxy: true,
        }
    }

    /// What the environment says.
    ///
    /// # Errors
    /// [`Error::Invalid`] if no cache directory can be told or the token is malformed,
    /// [`Error::Io`] if a token file exists and cannot be read.
    pub fn from_env() -> Result<Self> {
        Config::from_lookup(|name| std::env::var(name).ok())
    }

    /// As [`Config::from_env`], with variables from `lookup`.
    ///
    /// # Errors
    /// As there.
    pub fn from_lookup(lookup: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let get = |name: &str| lookup(name).filter(|value| !value.trim().is_empty());
        let home = get("HOME").or_else(|| get("USERPROFILE"));
        let path = |text: String| match (text.strip_prefix("~/"), &home) {
            (Some(rest), Some(home)) => Path::new(home).join(rest),
            _ => PathBuf::from(text),
        };
        let default_home = || {
            let caches = get("XDG_CACHE_HOME").map(&path);
            let caches = caches.or_else(|| Some(Path::new(home.as_ref()?).join(".cache")));
            Some(caches?.join("huggingface"))
        };
        let hf_home = get("HF_HOME").map(&path).or_else(default_home);
        let cache = get("HF_HUB_CACHE").map(&path).or_else(|| Some(hf_home.as_ref()?.join("hub")));
        let cache = cache.ok_or(Error::Invalid {
            what: "environment variable",
            value: "HOME".into(),
            why: "without HOME, HF_HOME or HF_HUB_CACHE there is no place for models",
        })?;
        let mut config = Config::new(cache);
        if let Some(endpoint) = get("HF_ENDPOINT") {
            config.endpoint = endpoint.trim().trim_end_matches('/').into();
        }
        config.token = match get("HF_TOKEN") {
            Some(text) => Some(Token::new(&text)?),
            None => {
                let file = get("HF_TOKEN_PATH").map(&path).or_else(|| Some(hf_home?.join("token")));
                file.map(|file| read_token(&file)).transpose()?.flatten()
            }
        };
        Ok(config)
    }
}

/// The token in a file, if the file is there and not empty.
fn read_token(file: &Path) -> Result<Option<Token>> {
    match std::fs::read_to_string(file) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Ok(text) if text.trim().is_empty() => Ok(None),
        text => Token::new(&text.on("read the token file", file)?).map(Some),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(variables: &[(&str, &str)]) -> Result<Config> {
        let find = |name: &str| variables.iter().find(|v| v.0 == name).map(|v| v.1.to_owned());
        Config::from_lookup(find)
    }

    #[test]
    fn the_cache_is_where_the_hubs_own_client_puts_it() {
        let cache = |variables: &[(&str, &str)]| config(variables).unwrap().cache;
        let home = ("HOME", "/home/ada");
        assert_eq!(cache(&[home]), Path::new("/home/ada/.cache/huggingface/hub"));
        assert_eq!(cache(&[home, ("XDG_CACHE_HOME", "/x")]), Path::new("/x/huggingface/hub"));
        assert_eq!(cache(&[home, ("HF_HOME", "/big")]), Path::new("/big/hub"));
        assert_eq!(cache(&[home, ("HF_HOME", "~/hf")]), Path::new("/home/ada/hf/hub"));
        assert_eq!(cache(&[home, ("HF_HOME", "/big"), ("HF_HUB_CACHE", "/c")]), Path::new("/c"));
        assert!(matches!(config(&[]), Err(Error::Invalid { .. })));
    }

    #[test]
    fn the_token_comes_from_the_variable_else_from_the_file_and_is_never_shown() {
        let dir = tempfile::tempdir().unwrap();
        let home = ("HF_HOME", dir.path().to_str().unwrap());
        assert_eq!(config(&[home]).unwrap().token, None);
        std::fs::write(dir.path().join("token"), "hf_file\n").unwrap();
        assert_eq!(config(&[home]).unwrap().token, Some(Token::new("hf_file").unwrap()));
        let both = config(&[home, ("HF_TOKEN", " hf_env ")]).unwrap();
        assert_eq!(both.token, Some(Token::new("hf_env").unwrap()));
        assert!(!format!("{both:?}").contains("hf_env"));
        let broken = config(&[home, ("HF_TOKEN", "two words")]).unwrap_err();
        assert!(!broken.to_string().contains("two words"));
    }

    #[test]
    fn the_endpoint_loses_its_last_slash() {
        let config = config(&[("HOME", "/h"), ("HF_ENDPOINT", "https://mirror.example/hf/")]).unwrap();
        assert_eq!(config.endpoint, "https://mirror.example/hf");
    }
}
