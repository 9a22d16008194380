//! Registries that hold what another one has.

use reqwest::Url;

use crate::reference;

/// Asked for images of a registry before that registry itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirror {
    /// `docker.io`
    of: String,
    /// `https://mirror.example.org:5000`
    url: String,
    host: String,
}

impl Mirror {
    /// Reads `HOST=URL`.
    ///
    /// # Errors
    /// What is wrong with it, and what is allowed.
    pub fn parse(text: &str) -> Result<Self, String> {
        let form = "write HOST=URL, such as docker.io=https://mirror.example.org";
        let (of, url) = text.split_once('=').ok_or_else(|| format!("{text:?}: {form}"))?;
        let of = reference::parse_registry(of).map_err(|error| format!("{text:?}: {error}"))?;
        let parsed = Url::parse(url).map_err(|error| format!("{text:?}: {error}; {form}"))?;
        let plain = matches!(parsed.path(), "" | "/")
            && parsed.query().is_none()
            && parsed.fragment().is_none()
            && parsed.username().is_empty()
            && parsed.password().is_none();
        let (Some(host), "http" | "https", true) = (parsed.host_str(), parsed.scheme(), plain)
        else {
            return Err(format!(
                "{text:?}: the URL is http:// or https://, a host and maybe a port, nothing else"
            ));
        };
        let host = match parsed.port() {
            Some(port) => format!("{host}:{port}"),
            None => host.to_owned(),
        };
        Ok(Self { of, url: format!("{}://{host}", parsed.scheme()), host })
    }

    /// The registry whose images it has.
    pub(crate) fn of(&self) -> &str {
        &self.of
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// As credentials of it are filed.
    pub(crate) fn host(&self) -> &str {
        &self.host
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirrors_are_read() {
        for (text, of, url, host) in [
            (
                "docker.io=https://m.example.org",
                "docker.io",
                "https://m.example.org",
                "m.example.org",
            ),
            (
                "index.docker.io=http://10.0.0.1:5000/",
                "docker.io",
                "http://10.0.0.1:5000",
                "10.0.0.1:5000",
            ),
            ("r.io:5000=https://[::1]:443", "r.io:5000", "https://[::1]", "[::1]"),
        ] {
            let mirror = Mirror::parse(text).unwrap();
            assert_eq!((mirror.of(), mirror.url(), mirror.host()), (of, url, host));
        }
        for bad in [
            "docker.io",
            "=https://m",
            "docker.io=",
            "docker.io=m.example.org",
            "docker.io=ftp://m",
            "docker.io=https://m/path",
            "docker.io=https://u:p@m",
            "docker.io=https://m?x=1",
            "a b=https://m",
        ] {
            let problem = Mirror::parse(bad).unwrap_err();
            assert!(problem.contains(&format!("{bad:?}")), "{problem}");
        }
    }
}
