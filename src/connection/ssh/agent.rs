//! A client of ssh-agent (draft-ietf-sshm-ssh-agent): lists the agent's keys and requests signatures, each with a
//! timeout.

use std::ffi::c_int;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, UnixAddr};

use super::key::{Fields, PublicKey, put_string};
use crate::escape::printable;

/// How long the agent may take to list its keys.
const LIST_LIMIT: Duration = Duration::from_secs(5);
/// How long the agent may take to sign: it may be asking its user for a touch or a confirmation.
const SIGN_LIMIT: Duration = Duration::from_secs(60);
/// Maximum length of an answer; real ones are shorter.
const MAX_ANSWER_BYTES: usize = 256 << 10;

const REQUEST_IDENTITIES: u8 = 11;
const IDENTITIES_ANSWER: u8 = 12;
const SIGN_REQUEST: u8 = 13;
const SIGN_RESPONSE: u8 = 14;
const RSA_SHA2_256: u32 = 2;
const RSA_SHA2_512: u32 = 4;

/// The agent behind a socket.
pub(super) struct Agent {
    path: PathBuf,
    keys: Vec<AgentKey>,
}

/// A key that an agent holds.
pub(super) struct AgentKey {
    pub(super) key: PublicKey,
    /// Safe to show.
    pub(super) comment: String,
}

impl Agent {
    /// Asks the agent for its keys. An error is a sentence that names the agent.
    pub(super) fn open(path: PathBuf) -> Result<Self, String> {
        let mut agent = Self {
            path,
            keys: Vec::new(),
        };
        let answer = agent.ask(REQUEST_IDENTITIES, &[], IDENTITIES_ANSWER, LIST_LIMIT)?;
        let mut fields = Fields(&answer);
        for _ in 0..fields.number().unwrap_or_default() {
            let (Some(blob), Some(comment)) = (fields.string(), fields.string()) else {
                break;
            };
            let comment = printable(comment, 100);
            let key = PublicKey::from_blob(blob).map(|key| AgentKey { key, comment });
            agent.keys.extend(key);
        }
        Ok(agent)
    }

    pub(super) fn keys(&self) -> &[AgentKey] {
        &self.keys
    }

    /// The signature over `data` (RFC 4252 7), as libssh2 expects it from a callback.
    pub(super) fn sign(&self, key: &PublicKey, data: &[u8]) -> Result<Vec<u8>, Refusal> {
        let algorithm = algorithm(data).ok_or_else(|| Refusal::from("a malformed request"))?;
        let plain = algorithm.split("-cert-v01").next().unwrap_or_default();
        let flags = match plain {
            "rsa-sha2-512" => RSA_SHA2_512,
            "rsa-sha2-256" => RSA_SHA2_256,
            _ => 0,
        };
        let mut request = Vec::new();
        put_string(&mut request, &key.blob);
        put_string(&mut request, data);
        request.extend(flags.to_be_bytes());
        let answer = self.ask(SIGN_REQUEST, &request, SIGN_RESPONSE, SIGN_LIMIT)?;
        let mut signature = Fields(Fields(&answer).string().unwrap_or_default());
        let made_with = signature.string().unwrap_or_default();
        if flags != 0 && made_with != plain.as_bytes() {
            // libssh2 then retries with the key's older algorithm.
            return Err(Refusal {
                code: libssh2_sys::LIBSSH2_ERROR_ALGO_UNSUPPORTED,
                reason: format!("{} can't sign with {plain}", self.name()),
            });
        }
        // A security key's signature has additional fields, which libssh2 sends unchanged.
        let bytes = if key.is_hardware() {
            signature.0
        } else {
            signature.string().unwrap_or_default()
        };
        if bytes.is_empty() {
            return Err(Refusal::from("an empty signature"));
        }
        Ok(bytes.to_vec())
    }

    fn name(&self) -> String {
        format!("the agent at {}", self.path.display())
    }

    /// Sends a request and returns the answer without its type.
    fn ask(&self, kind: u8, body: &[u8], answer: u8, limit: Duration) -> Result<Vec<u8>, String> {
        let failed = |reason: &str| format!("{} {reason}", self.name());
        let mut message = Vec::new();
        put_string(&mut message, &[&[kind], body].concat());
        match self.exchange(&message, limit) {
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                let seconds = limit.as_secs();
                Err(failed(&format!("did not answer within {seconds} s")))
            }
            Err(error) => Err(failed(&format!("does not answer: {error}"))),
            Ok(text) => match text.split_first() {
                Some((kind, rest)) if *kind == answer => Ok(rest.to_vec()),
                _ => Err(failed("refused the request")),
            },
        }
    }

    fn exchange(&self, message: &[u8], limit: Duration) -> io::Result<Vec<u8>> {
        let none = SockFlag::empty();
        let socket = socket::socket(AddressFamily::Unix, SockType::Stream, none, None)?;
        let mut stream = UnixStream::from(socket);
        // Non-blocking: a connect could wait for ever if the agent accepts no connections.
        stream.set_nonblocking(true)?;
        socket::connect(stream.as_raw_fd(), &UnixAddr::new(&self.path)?)?;
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(limit))?;
        stream.set_write_timeout(Some(limit))?;
        stream.write_all(message)?;
        let mut length = [0; 4];
        stream.read_exact(&mut length)?;
        let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
        if length > MAX_ANSWER_BYTES {
            return Err(io::Error::other("its answer is too long"));
        }
        let mut answer = vec![0; length];
        stream.read_exact(&mut answer)?;
        Ok(answer)
    }
}

/// Why there is no signature.
pub(super) struct Refusal {
    /// The error code for libssh2.
    pub(super) code: c_int,
    pub(super) reason: String,
}

impl From<String> for Refusal {
    fn from(reason: String) -> Self {
        let code = libssh2_sys::LIBSSH2_ERROR_AGENT_PROTOCOL;
        Self { code, reason }
    }
}

impl From<&str> for Refusal {
    fn from(what: &str) -> Self {
        Self::from(format!("the agent sent {what}"))
    }
}

/// The signature algorithm named in the data to be signed: session id, 50, user, service, `publickey`, 1, algorithm.
fn algorithm(data: &[u8]) -> Option<&str> {
    let mut fields = Fields(data);
    fields.string()?;
    fields.0 = fields.0.get(1..)?;
    for _ in 0..3 {
        fields.string()?;
    }
    fields.0 = fields.0.get(1..)?;
    std::str::from_utf8(fields.string()?).ok()
}
