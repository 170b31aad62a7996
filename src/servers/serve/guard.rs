//! Access control: decides from the head of a request, before anything else, whether to accept the request.
//!
//! A web page in a browser on this machine can send requests to any port, under a name that its owner resolves to
//! 127.0.0.1 (DNS rebinding). So the Host header must name this machine, and no response allows a page of another
//! origin to read it (no CORS). On a port, the token is required too; the Unix socket is protected by its mode.

use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, HOST};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, Uri};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use std::sync::Arc;

use super::problem::{BAD_HOST, Problem, UNAUTHORIZED};
use super::token::Token;

/// The names of this machine that a Host header may use.
const NAMES: [&str; 3] = ["localhost", "127.0.0.1", "[::1]"];

/// The requirements for a request: on a port, that port in the Host header, and the token. Any user of this machine can
/// connect to a port, but only this user to the socket. A forwarded socket may have any port.
pub struct Guard(pub Option<(u16, Token)>);

impl Guard {
    fn check(&self, uri: &Uri, headers: &HeaderMap) -> Result<(), Problem> {
        let mut hosts = headers.get_all(HOST).iter();
        let host = match (hosts.next(), hosts.next()) {
            (Some(host), None) => host.to_str().ok().and_then(|host| host.parse().ok()),
            _ => None,
        };
        let is_ours = |host: &Authority| self.is_ours(host);
        // A request in absolute form, as for a proxy, names the host in its first line, which overrides the header.
        if !host.as_ref().is_some_and(is_ours) || !uri.authority().is_none_or(is_ours) {
            let wanted = match &self.0 {
                Some((port, _)) => format!("localhost:{port}, 127.0.0.1:{port} or [::1]:{port}"),
                None => "localhost".to_owned(),
            };
            let message = format!("the Host header must be {wanted}");
            return Err(Problem::new(BAD_HOST, message));
        }
        let given = || bearer(headers.get(AUTHORIZATION)?.as_bytes());
        match &self.0 {
            Some((_, token)) if !given().is_some_and(|given| token.is(given)) => {
                let message = "send the header `Authorization: Bearer TOKEN`; the token is in `serve.token` in the state directory";
                Err(Problem::new(UNAUTHORIZED, message))
            }
            _ => Ok(()),
        }
    }

    fn is_ours(&self, host: &Authority) -> bool {
        // A Host header contains no user.
        let has_no_user = !host.as_str().contains('@');
        let name = NAMES
            .iter()
            .any(|name| host.host().eq_ignore_ascii_case(name));
        let port = match &self.0 {
            Some((port, _)) => host.port_u16().unwrap_or(80) == *port,
            None => true,
        };
        has_no_user && name && port
    }
}

/// The token after `Bearer`, which is case-insensitive (RFC 9110, 11.1).
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, rest) = value.split_at_checked(7)?;
    scheme
        .eq_ignore_ascii_case(b"bearer ")
        .then(|| rest.trim_ascii())
}

/// Passes a request on or refuses it.
pub async fn guard(State(guard): State<Arc<Guard>>, request: Request, next: Next) -> Response {
    match guard.check(request.uri(), request.headers()) {
        Ok(()) => next.run(request).await,
        Err(problem) => problem.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(guard: &Guard, uri: &str, hosts: &[&str]) -> bool {
        let mut headers = HeaderMap::new();
        for host in hosts {
            headers.append(HOST, host.parse().unwrap());
        }
        guard.check(&uri.parse().unwrap(), &headers).is_ok()
    }

    #[test]
    fn only_this_machine_is_named() {
        let guard = Guard(None);
        for host in ["localhost", "LOCALHOST:6000", "127.0.0.1", "[::1]:1"] {
            assert!(hosts(&guard, "/", &[host]), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "u@localhost",
            "::1",
            "127.0.0.2",
        ] {
            assert!(!hosts(&guard, "/", &[host]), "{host}");
        }
        assert!(!hosts(&guard, "/", &[]) && !hosts(&guard, "/", &["localhost", "localhost"]));
        assert!(hosts(&guard, "http://localhost/", &["localhost"]));
        assert!(!hosts(&guard, "http://evil.example/", &["localhost"]));
    }

    #[test]
    fn the_scheme_is_bearer() {
        assert_eq!(bearer(b"Bearer abc"), Some(&b"abc"[..]));
        assert_eq!(bearer(b"bearer  abc "), Some(&b"abc"[..]));
        assert_eq!(
            (bearer(b"Basic abc"), bearer(b"Bearer"), bearer(b"")),
            (None, None, None)
        );
    }
}
