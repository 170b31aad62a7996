//! Authentication, RFC 4252, in ssh(1)'s manner with libssh2's means.
//!
//! The order: the configured identities (through the agent where it holds the key, so that no
//! passphrase is needed), the agent's other keys, default identities that are encrypted, then
//! keyboard-interactive and password. The first key is tried without asking the server what it
//! takes: that question costs a round trip and, once a try has failed, counts as another failed
//! try. Servers end the session at the sixth (`MaxAuthTries`).
//!
//! Not handled: GSSAPI, host-based authentication, PKCS#11, security keys without an agent, a
//! certificate file whose private key is with an agent only, RSA certificates in an agent, and the
//! change of an expired password.

use std::cell::Cell;
use std::collections::VecDeque;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Once;
use std::time::Duration;

use ssh2::{Agent, ErrorCode, KeyboardInteractivePrompt, Prompt, Session};

use super::config::{Resolved, with_suffix};
use super::key::PublicKey;
use super::keyfile::{self, KeyFile};
use super::prompt::{PromptError, Prompter};
use super::watchdog::Watchdog;
use crate::connection::Policy;
use crate::escape::printable;

/// How long the server may take to answer one key or password; PAM modules take their time.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);
/// The same for keyboard-interactive, where someone may have to pick up a telephone.
const INTERACTIVE_LIMIT: Duration = Duration::from_secs(120);
/// Failed tries after which only passwords are worth the last one of sshd's six.
const FAILURES_MAX: u32 = 5;
/// With more keys than this and none of them configured, the server is asked first: asking is not
/// counted as a failure then, and the key that fits may be the fifth.
const BLIND_KEYS_MAX: usize = 4;
/// More steps than this are no login either: a server could ask for new ones for ever.
const STEPS_MAX: u32 = 5;
/// How often a passphrase is asked for, as in ssh(1).
const PASSPHRASE_TRIES: u32 = 3;
/// More prompts than this in one round, or rounds in one try, are no login.
const PROMPTS_MAX: usize = 10;
const ROUNDS_MAX: usize = 20;
/// How much of a server's question is shown.
const QUESTION_MAX: usize = 500;

/// Why authentication failed. The text is whole but for the host in front.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// The server said no to all there is, or nothing could be tried.
    #[error("{0}")]
    Refused(String),
    /// The connection broke or the server stopped answering.
    #[error("{0}")]
    Lost(String),
}

/// A way to authenticate that is supported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Method {
    PublicKey,
    KeyboardInteractive,
    Password,
}

impl Method {
    const ALL: [Self; 3] = [Self::PublicKey, Self::KeyboardInteractive, Self::Password];

    fn name(self) -> &'static str {
        match self {
            Self::PublicKey => "publickey",
            Self::KeyboardInteractive => "keyboard-interactive",
            Self::Password => "password",
        }
    }
}

/// The methods that the configuration lets us try, in order.
fn method_order(resolved: &Resolved) -> Vec<Method> {
    let enabled = |method: &Method| match method {
        Method::PublicKey => resolved.pubkey_authentication,
        Method::KeyboardInteractive => resolved.kbd_interactive_authentication,
        Method::Password => resolved.password_authentication,
    };
    let preferred: Vec<Method> = match &resolved.preferred_authentications {
        None => Method::ALL.to_vec(),
        Some(names) => names
            .iter()
            .filter_map(|name| Method::ALL.into_iter().find(|method| method.name() == name))
            .collect(),
    };
    preferred.into_iter().filter(enabled).collect()
}

/// One key to offer.
#[derive(Clone, PartialEq, Eq)]
struct Candidate {
    /// A path or an agent's comment, safe to show.
    label: String,
    /// Named by `IdentityFile` or a default identity, not just found in the agent.
    configured: bool,
    source: Source,
}

#[derive(Clone, PartialEq, Eq)]
enum Source {
    /// The agent's key with this blob.
    Agent(Vec<u8>),
    File {
        /// The private key's text.
        text: String,
        encrypted: bool,
        /// The public key or certificate to offer; computed by libssh2 where it is not known.
        public: Option<PublicKey>,
    },
}

impl fmt::Debug for Candidate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.label)
    }
}

/// A configured identity that could be read.
struct Configured {
    path: PathBuf,
    explicit: bool,
    key: KeyFile,
    /// Certificates that were found for it.
    certificates: Vec<PublicKey>,
}

/// A key that the agent holds.
struct AgentKey {
    key: PublicKey,
    comment: String,
}

/// The keys to offer, in order, and remarks about those that can't be.
#[allow(clippy::too_many_lines)]
fn plan(
    configured: Vec<Configured>,
    held: &[AgentKey],
    only_configured: bool,
) -> (VecDeque<Candidate>, Vec<String>) {
    let mut first = VecDeque::new();
    let mut last = Vec::new();
    let mut remarks = Vec::new();
    let mut used: Vec<&[u8]> = Vec::new();
    for identity in configured {
        let path = identity.path.display();
        let public = match &identity.key {
            KeyFile::Private { public, .. } => public.clone(),
            KeyFile::Public(public) => public.plain(),
        };
        // Through the agent, a certificate before the plain key.
        let mut with_agent: Vec<&AgentKey> = held
            .iter()
            .filter(|held| public.is_some() && held.key.plain() == public)
            .collect();
        with_agent.sort_by_key(|held| !held.key.is_certificate());
        for held in with_agent {
            used.push(&held.key.blob);
            if let Some(remark) = agent_cannot(&held.key) {
                remarks.push(format!("{path}: {remark}"));
                continue;
            }
            let (label, source) = (
                format!("{path} (agent)"),
                Source::Agent(held.key.blob.clone()),
            );
            first.push_back(Candidate {
                label,
                configured: true,
                source,
            });
        }
        let in_agent = public
            .as_ref()
            .is_some_and(|public| held.iter().any(|held| held.key == *public));
        let KeyFile::Private {
            text, encrypted, ..
        } = identity.key
        else {
            if !in_agent {
                remarks.push(format!(
                    "{path}: only the public half is here, and no agent holds the private one"
                ));
            }
            continue;
        };
        if public.as_ref().is_some_and(PublicKey::is_hardware) {
            if !in_agent {
                remarks.push(format!(
                    "{path}: a security key works through an agent only (ssh-add {path})"
                ));
            }
            continue;
        }
        for certificate in identity.certificates {
            let label = format!("{path} (certificate)");
            let source = Source::File {
                text: text.clone(),
                encrypted,
                public: Some(certificate),
            };
            let candidate = Candidate {
                label,
                configured: true,
                source,
            };
            if encrypted && in_agent {
                last.push(candidate);
            } else {
                first.push_back(candidate);
            }
        }
        if !in_agent {
            let source = Source::File {
                text,
                encrypted,
                public,
            };
            let candidate = Candidate {
                label: path.to_string(),
                configured: true,
                source,
            };
            // A key that ssh tries unasked should cost no passphrase while the agent has others.
            if encrypted && !identity.explicit {
                last.push(candidate);
            } else {
                first.push_back(candidate);
            }
        }
    }
    if !only_configured {
        for held in held
            .iter()
            .filter(|held| !used.contains(&held.key.blob.as_slice()))
        {
            let label = format!("{:?} (agent)", held.comment);
            match agent_cannot(&held.key) {
                Some(remark) => remarks.push(format!("{label}: {remark}")),
                None => first.push_back(Candidate {
                    label,
                    configured: false,
                    source: Source::Agent(held.key.blob.clone()),
                }),
            }
        }
    }
    first.extend(last);
    (first, remarks)
}

/// What libssh2 can't do with a key of the agent.
fn agent_cannot(key: &PublicKey) -> Option<&'static str> {
    (key.kind == "ssh-rsa-cert-v01@openssh.com")
        .then_some("an RSA certificate does not work through an agent here (name its files)")
}

/// Reads the configured identities and the certificates that belong to them.
fn read_configured(resolved: &Resolved, remarks: &mut Vec<String>) -> Vec<Configured> {
    let certificates: Vec<PublicKey> = resolved
        .certificates
        .iter()
        .filter_map(|path| {
            let found = keyfile::read_public(path).filter(PublicKey::is_certificate);
            if found.is_none() {
                remarks.push(format!(
                    "{}: not a certificate that can be read",
                    path.display()
                ));
            }
            found
        })
        .collect();
    let mut configured = Vec::new();
    for identity in &resolved.identities {
        let key = match keyfile::read(&identity.path) {
            Ok(key) => key,
            Err(error) => {
                remarks.push(format!("{}: {error}", identity.path.display()));
                continue;
            }
        };
        let public = match &key {
            KeyFile::Private { public, .. } => public.as_ref(),
            KeyFile::Public(public) => Some(public),
        };
        // As ssh does: each CertificateFile, and `-cert.pub` beside the key.
        let beside = keyfile::read_public(&with_suffix(&identity.path, "-cert.pub"));
        let mut fitting: Vec<PublicKey> = Vec::new();
        for certificate in certificates.iter().cloned().chain(beside) {
            let fits = certificate.is_certificate()
                && public.is_some()
                && certificate.plain().as_ref() == public;
            if fits && !fitting.contains(&certificate) {
                fitting.push(certificate);
            }
        }
        let (path, explicit) = (identity.path.clone(), identity.explicit);
        configured.push(Configured {
            path,
            explicit,
            key,
            certificates: fitting,
        });
    }
    configured
}

/// What a try came to.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    /// We are in.
    Accepted,
    /// A plain no.
    Refused,
    /// Either a no or one of several required steps done: the server's list tells.
    NoOrPartial,
    /// Nothing was sent that counts; why.
    Unusable(String),
    /// The connection is gone.
    Lost(String),
}

/// libssh2's words for a signature that could not be made: with a private key from a file, the
/// passphrase is wrong. The code is the same as for a refused signature.
const NO_SIGNATURE: &str = "Callback returned error";
/// libssh2's words when the answer did not come, for both kinds of tries.
const NO_ANSWER: [&str; 2] = [
    "Waiting for USERAUTH response",
    "Waiting for publickey USERAUTH response",
];
const NO_INTERACTIVE_ANSWER: &str = "Waiting for keyboard USERAUTH response";

fn outcome(result: Result<(), ssh2::Error>) -> Outcome {
    let Err(error) = result else {
        return Outcome::Accepted;
    };
    let ErrorCode::Session(code) = error.code() else {
        return Outcome::Lost(error.message().to_owned());
    };
    let message = error.message();
    match code {
        libssh2_sys::LIBSSH2_ERROR_AUTHENTICATION_FAILED if message != NO_INTERACTIVE_ANSWER => {
            Outcome::Refused
        }
        libssh2_sys::LIBSSH2_ERROR_PUBLICKEY_UNVERIFIED if message == NO_SIGNATURE => {
            Outcome::Unusable("no signature could be made with it".to_owned())
        }
        libssh2_sys::LIBSSH2_ERROR_PUBLICKEY_UNVERIFIED if !NO_ANSWER.contains(&message) => {
            Outcome::NoOrPartial
        }
        libssh2_sys::LIBSSH2_ERROR_FILE => {
            Outcome::Unusable("it can't be read as a key".to_owned())
        }
        libssh2_sys::LIBSSH2_ERROR_METHOD_NONE => {
            Outcome::Unusable("the server takes no signature that it can make".to_owned())
        }
        libssh2_sys::LIBSSH2_ERROR_KEYFILE_AUTH_FAILED => {
            Outcome::Unusable("the passphrase is wrong".to_owned())
        }
        libssh2_sys::LIBSSH2_ERROR_AGENT_PROTOCOL => {
            Outcome::Unusable("the agent did not sign".to_owned())
        }
        libssh2_sys::LIBSSH2_ERROR_PASSWORD_EXPIRED => Outcome::Unusable(
            "the password has expired: log in with ssh once and change it".to_owned(),
        ),
        _ => Outcome::Lost(printable(message, 200)),
    }
}

/// Authenticates `session` as the configuration says. The session must be blocking; `watchdog`
/// bounds each step, and `prompter` stops its clock.
pub(super) fn authenticate(
    session: &Session,
    watchdog: &Watchdog,
    resolved: &Resolved,
    prompter: &mut dyn Prompter,
    policy: &Policy,
) -> Result<(), AuthError> {
    let order = method_order(resolved);
    let mut remarks = Vec::new();
    let mut keys = VecDeque::new();
    let mut agent = None;
    if order.contains(&Method::PublicKey) {
        let configured = read_configured(resolved, &mut remarks);
        let held = match open_agent(session, resolved) {
            Ok(Some((opened, held))) => {
                agent = Some(opened);
                held
            }
            Ok(None) => Vec::new(),
            Err(reason) => {
                remarks.push(reason);
                Vec::new()
            }
        };
        let planned = plan(configured, &held, resolved.identities_only);
        keys = planned.0;
        remarks.extend(planned.1);
    }
    let login = Login {
        session,
        watchdog,
        resolved,
        prompter,
        policy,
        agent,
        keys,
        left: order,
        server: None,
        failures: 0,
        interactive_tries: 0,
        password_tries: 0,
        steps: 0,
        refused: Vec::new(),
        begun: false,
        cut: false,
        tried: Vec::new(),
        remarks,
    };
    login.run()
}

/// The agent and its keys; none where there is no agent. Its answers are not bounded in time: it
/// may be asking the user.
fn open_agent(
    session: &Session,
    resolved: &Resolved,
) -> Result<Option<(Agent, Vec<AgentKey>)>, String> {
    let Some(path) = &resolved.agent else {
        return Ok(None);
    };
    let open = || {
        let mut agent = session.agent()?;
        agent.set_identity_path(path)?;
        agent.connect()?;
        agent.list_identities()?;
        let identities = agent.identities()?;
        Ok((agent, identities))
    };
    let (agent, identities) = open().map_err(|error: ssh2::Error| {
        format!(
            "the agent at {} does not answer: {}",
            path.display(),
            error.message()
        )
    })?;
    let held = identities
        .iter()
        .filter_map(|identity| {
            let key = PublicKey::from_blob(identity.blob())?;
            Some(AgentKey {
                key,
                comment: printable(identity.comment(), 100),
            })
        })
        .collect();
    Ok(Some((agent, held)))
}

/// One login in progress.
struct Login<'a> {
    session: &'a Session,
    watchdog: &'a Watchdog,
    resolved: &'a Resolved,
    prompter: &'a mut dyn Prompter,
    policy: &'a Policy,
    agent: Option<Agent>,
    keys: VecDeque<Candidate>,
    /// Methods not used up yet, in order.
    left: Vec<Method>,
    /// What the server says it takes; none before it was asked.
    server: Option<Vec<String>>,
    /// Tries that the server counts.
    failures: u32,
    interactive_tries: u32,
    password_tries: u32,
    /// How many of several required steps are done.
    steps: u32,
    /// Keys that the server refused; it may take them in a further step.
    refused: Vec<Candidate>,
    /// Whether anything was asked of the server.
    begun: bool,
    /// The server asked questions without an end.
    cut: bool,
    /// What was refused, for the error.
    tried: Vec<String>,
    /// What could not be tried, and why.
    remarks: Vec<String>,
}

impl Login<'_> {
    fn run(mut self) -> Result<(), AuthError> {
        let blind = self.left.first() == Some(&Method::PublicKey)
            && self
                .keys
                .front()
                .is_some_and(|key| key.configured || self.keys.len() <= BLIND_KEYS_MAX);
        if !blind && self.ask_server()? {
            return Ok(());
        }
        while let Some(method) = self.next_method() {
            self.begun = true;
            let outcome = match method {
                Method::PublicKey => self.try_key(),
                Method::KeyboardInteractive => self.try_interactive(),
                Method::Password => self.try_password(),
            };
            match outcome {
                Outcome::Accepted => return Ok(()),
                Outcome::Unusable(_) => {}
                Outcome::Lost(reason) => return Err(self.lost(&reason)),
                Outcome::Refused => {
                    self.failures += 1;
                    // A password that was taken as the first of two steps looks like a wrong one.
                    let may_be_partial =
                        method != Method::PublicKey && self.failures < FAILURES_MAX;
                    if (self.server.is_none() || may_be_partial) && self.ask_server()? {
                        return Ok(());
                    }
                }
                Outcome::NoOrPartial => {
                    // The server had said that it takes this key, so its no means: and now the rest.
                    // With an earlier list to compare, asking tells for sure.
                    if self.server.is_none() {
                        self.step_done();
                    }
                    if self.ask_server()? {
                        return Ok(());
                    }
                }
            }
        }
        Err(AuthError::Refused(self.refusal()))
    }

    /// The method to go on with; none when all are used up.
    fn next_method(&mut self) -> Option<Method> {
        let taken = |server: &Option<Vec<String>>, method: Method| {
            server
                .as_ref()
                .is_none_or(|names| names.iter().any(|name| name == method.name()))
        };
        let passwords_wait = self
            .left
            .iter()
            .any(|method| *method != Method::PublicKey && taken(&self.server, *method))
            && self.prompter.available().is_ok();
        let keys_done = self.keys.is_empty() || (self.failures >= FAILURES_MAX && passwords_wait);
        self.left
            .retain(|method| *method != Method::PublicKey || !keys_done);
        let can_ask = self.prompter.available();
        self.left.iter().copied().find(|method| {
            taken(&self.server, *method) && (*method == Method::PublicKey || can_ask.is_ok())
        })
    }

    fn used_up(&mut self, method: Method) {
        self.left.retain(|left| *left != method);
    }

    /// Asks the server what it takes (a `none` request, RFC 4252 5.2). True if that let us in.
    fn ask_server(&mut self) -> Result<bool, AuthError> {
        // sshd counts a `none` as a failed try unless it is the first request of all.
        let counted = std::mem::replace(&mut self.begun, true);
        let user = &self.resolved.user;
        let answer = self.watchdog.within(ANSWER_LIMIT, || {
            without_panic(|| self.session.auth_methods(user).map(str::to_owned))
        });
        let answer = match answer {
            _ if self.session.authenticated() => {
                (self.policy.step)("the server asks for no authentication");
                return Ok(true);
            }
            Some(Ok(list)) => list,
            Some(Err(error)) => return Err(self.lost(error.message())),
            None => {
                return Err(AuthError::Lost(
                    "the server's list of methods is not text".to_owned(),
                ));
            }
        };
        if counted {
            self.failures += 1;
        }
        self.show_banner();
        let names: Vec<String> = answer
            .split(',')
            .filter(|name| !name.is_empty())
            .take(20)
            .map(|name| printable(name, 60))
            .collect();
        (self.policy.step)(&format!("the server takes: {}", names.join(", ")));
        if self.server.as_ref().is_some_and(|before| *before != names) {
            // Another list than before: a step is done, and the methods start afresh.
            self.step_done();
        }
        self.server = Some(names);
        Ok(false)
    }

    fn step_done(&mut self) {
        self.steps += 1;
        if self.steps > STEPS_MAX {
            return;
        }
        self.keys.extend(self.refused.drain(..));
        self.interactive_tries = 0;
        self.password_tries = 0;
        let keys_left = !self.keys.is_empty();
        self.left = method_order(self.resolved);
        self.left
            .retain(|method| *method != Method::PublicKey || keys_left);
        (self.policy.step)("the server wants a further step");
    }

    /// Passes on what the server says before the login (RFC 4252 5.4).
    fn show_banner(&self) {
        if self.server.is_none()
            && let Ok(Some(banner)) = self.session.userauth_banner()
        {
            for line in banner.lines().take(30) {
                (self.policy.warn)(&printable(line, 200));
            }
        }
    }

    fn try_key(&mut self) -> Outcome {
        let Some(key) = self.keys.pop_front() else {
            self.used_up(Method::PublicKey);
            return Outcome::Unusable(String::new());
        };
        (self.policy.step)(&format!("trying the key {}", key.label));
        let outcome = match &key.source {
            Source::Agent(blob) => self.offer_from_agent(blob),
            Source::File {
                text,
                encrypted: false,
                public,
            } => self.offer(text, public.as_ref(), None),
            Source::File {
                text,
                encrypted: true,
                public,
            } => self.offer_encrypted(&key.label, text, public.as_ref()),
        };
        match &outcome {
            Outcome::Refused | Outcome::NoOrPartial | Outcome::Lost(_) => {
                if !self.tried.contains(&key.label) {
                    self.tried.push(key.label.clone());
                }
                if outcome == Outcome::Refused {
                    self.refused.push(key);
                }
            }
            Outcome::Unusable(reason) => self.remarks.push(format!("{}: {reason}", key.label)),
            Outcome::Accepted => {}
        }
        outcome
    }

    fn offer_from_agent(&self, blob: &[u8]) -> Outcome {
        let Some(agent) = &self.agent else {
            return Outcome::Unusable("the agent is gone".to_owned());
        };
        let identities = agent.identities().unwrap_or_default();
        let Some(identity) = identities.iter().find(|identity| identity.blob() == blob) else {
            return Outcome::Unusable("the agent has it no more".to_owned());
        };
        // Not timed: the agent may be asking its user for a touch or a yes.
        match outcome(agent.userauth(&self.resolved.user, identity)) {
            Outcome::Unusable(_) => Outcome::Unusable("the agent did not sign".to_owned()),
            other => other,
        }
    }

    fn offer(&self, text: &str, public: Option<&PublicKey>, passphrase: Option<&str>) -> Outcome {
        let line = public.map(PublicKey::to_line);
        let offer = || {
            self.session.userauth_pubkey_memory(
                &self.resolved.user,
                line.as_deref(),
                text,
                passphrase,
            )
        };
        outcome(self.watchdog.within(ANSWER_LIMIT, || again(offer)))
    }

    /// Offers an encrypted key. Where its public half is known, the server is asked about it first,
    /// so that no passphrase is typed for a key that it refuses.
    fn offer_encrypted(&mut self, label: &str, text: &str, public: Option<&PublicKey>) -> Outcome {
        if public.is_some() {
            match self.offer(text, public, None) {
                Outcome::Unusable(_) => {}
                other => return other,
            }
        }
        for _ in 0..PASSPHRASE_TRIES {
            let question = format!("Enter passphrase for key '{label}': ");
            let passphrase = match self.prompter.secret(&question) {
                Ok(passphrase) => passphrase,
                Err(error) => return Outcome::Unusable(format!("it needs a passphrase: {error}")),
            };
            // An empty one means: go on without this key, as in ssh(1).
            if passphrase.expose().is_empty() {
                return Outcome::Unusable("no passphrase was given".to_owned());
            }
            match self.offer(text, public, Some(passphrase.expose())) {
                Outcome::Unusable(_) => {}
                other => return other,
            }
        }
        Outcome::Unusable("the passphrase was wrong, or the file is damaged".to_owned())
    }

    fn who(&self) -> String {
        format!("{}@{}", self.resolved.user, self.resolved.host_name)
    }

    fn try_password(&mut self) -> Outcome {
        self.password_tries += 1;
        if self.password_tries >= self.resolved.password_prompts {
            self.used_up(Method::Password);
        }
        let question = format!("{}'s password: ", self.who());
        let password = match self.prompter.secret(&question) {
            Ok(password) => password,
            Err(error) => return self.no_answer(Method::Password, &error),
        };
        let attempt = || {
            self.session
                .userauth_password(&self.resolved.user, password.expose())
        };
        let outcome = outcome(self.watchdog.within(ANSWER_LIMIT, || again(attempt)));
        self.note_try(Method::Password, &outcome);
        outcome
    }

    fn try_interactive(&mut self) -> Outcome {
        self.interactive_tries += 1;
        if self.interactive_tries >= self.resolved.password_prompts {
            self.used_up(Method::KeyboardInteractive);
        }
        let who = self.who();
        let (prompter, watchdog) = (&mut *self.prompter, self.watchdog);
        let mut dialogue = Dialogue {
            prompter,
            watchdog,
            who,
            rounds: 0,
            failed: None,
            cut: false,
        };
        let attempt = || {
            self.session
                .userauth_keyboard_interactive(&self.resolved.user, &mut dialogue)
        };
        let result = self.watchdog.within(INTERACTIVE_LIMIT, attempt);
        let (rounds, failed, cut) = (dialogue.rounds, dialogue.failed, dialogue.cut);
        if cut {
            self.cut = true;
            return Outcome::Lost(String::new());
        }
        if result.is_err()
            && let Some(error) = failed
        {
            return self.no_answer(Method::KeyboardInteractive, &error);
        }
        let outcome = outcome(result);
        if rounds == 0 {
            // Refused before it asked anything: asking again brings nothing.
            self.used_up(Method::KeyboardInteractive);
        }
        self.note_try(Method::KeyboardInteractive, &outcome);
        outcome
    }

    fn no_answer(&mut self, method: Method, error: &PromptError) -> Outcome {
        self.used_up(method);
        self.remarks.push(format!("{}: {error}", method.name()));
        Outcome::Unusable(String::new())
    }

    fn note_try(&mut self, method: Method, outcome: &Outcome) {
        match outcome {
            Outcome::Refused | Outcome::NoOrPartial
                if !self.tried.iter().any(|tried| tried == method.name()) =>
            {
                self.tried.push(method.name().to_owned());
            }
            Outcome::Unusable(reason) => {
                self.used_up(method);
                self.remarks.push(format!("{}: {reason}", method.name()));
            }
            _ => {}
        }
    }

    fn lost(&self, reason: &str) -> AuthError {
        if self.cut {
            return AuthError::Refused(
                "the server kept asking questions without an end".to_owned(),
            );
        }
        if self.watchdog.fired() {
            return AuthError::Lost(format!(
                "the server stopped answering during authentication (waited {} s)",
                ANSWER_LIMIT.as_secs()
            ));
        }
        if self.failures > 0 {
            return AuthError::Refused(format!(
                "the server ended the session after {} failed tries; {}",
                self.failures,
                self.refusal()
            ));
        }
        AuthError::Lost(format!(
            "the connection broke during authentication: {}",
            printable(reason, 200)
        ))
    }

    /// Who was refused, what the server takes, what was tried and what was not, what to do.
    fn refusal(&self) -> String {
        let server = self.server.as_deref().unwrap_or_default();
        let mut text = format!(
            "{} port {} refused the login",
            self.who(),
            self.resolved.port
        );
        if self.steps > 0 {
            text.push_str(" after a first step that it accepted");
        }
        let mut add = |what: &str, items: &[String]| {
            if !items.is_empty() {
                text.push_str("; ");
                text.push_str(what);
                text.push(' ');
                text.push_str(&items.join(", "));
            }
        };
        add("it takes", server);
        add("tried:", &self.tried);
        add("not tried:", &self.not_tried(server));
        let advice = if !self.keys.is_empty() || self.failures >= FAILURES_MAX {
            "; name the right key with -i and -o IdentitiesOnly=yes: servers end a session after a few tries"
        } else if self.tried.is_empty() {
            "; name a key with -i, start an agent, or log in with ssh once to see what it uses"
        } else {
            "; check the user name and that the key is in the host's authorized_keys"
        };
        text.push_str(advice);
        text
    }

    fn not_tried(&self, server: &[String]) -> Vec<String> {
        let mut items = self.remarks.clone();
        items.extend(
            self.keys
                .iter()
                .map(|key| format!("{} (too many failed tries)", key.label)),
        );
        for method in [Method::KeyboardInteractive, Method::Password] {
            if !server.iter().any(|name| name == method.name())
                || self.tried.iter().any(|tried| tried == method.name())
            {
                continue;
            }
            if !method_order(self.resolved).contains(&method) {
                items.push(format!(
                    "{} (switched off by the configuration)",
                    method.name()
                ));
            } else if let Err(error) = self.prompter.available() {
                items.push(format!("{} ({error})", method.name()));
            }
        }
        let offers = |name: &str| server.iter().any(|offered| offered.starts_with(name));
        for option in &self.resolved.unsupported {
            let matters = match option.as_str() {
                "GSSAPIAuthentication" => offers("gssapi"),
                "HostbasedAuthentication" => offers("hostbased"),
                _ => true,
            };
            if matters {
                items.push(format!("{option} (rsig has no support for it)"));
            }
        }
        items
    }
}

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// The result of `call`, or none where it panics; then nothing is printed. For ssh2's
/// `auth_methods`, which panics on a list that is not UTF-8: a hostile server can send one.
fn without_panic<T>(call: impl FnOnce() -> T) -> Option<T> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !QUIET.get() {
                usual(info);
            }
        }));
    });
    QUIET.set(true);
    let result = catch_unwind(AssertUnwindSafe(call));
    QUIET.set(false);
    result.ok()
}

/// Answers the server's questions of one keyboard-interactive try (RFC 4256).
struct Dialogue<'a> {
    prompter: &'a mut dyn Prompter,
    watchdog: &'a Watchdog,
    who: String,
    rounds: usize,
    /// Why a question was not answered.
    failed: Option<PromptError>,
    /// The server asked on after that, and the connection was shut.
    cut: bool,
}

impl KeyboardInteractivePrompt for Dialogue<'_> {
    fn prompt(&mut self, name: &str, instructions: &str, prompts: &[Prompt<'_>]) -> Vec<String> {
        self.rounds += 1;
        if self.failed.is_some() {
            // libssh2 gives no other way to leave a server that does not stop asking.
            self.cut = true;
            self.watchdog.arm(Duration::ZERO);
        }
        if self.rounds > ROUNDS_MAX || prompts.len() > PROMPTS_MAX {
            self.failed.get_or_insert(PromptError::Cancelled);
        }
        let mut before: String = [name, instructions]
            .iter()
            .flat_map(|text| text.lines())
            .filter(|line| !line.trim().is_empty())
            .take(10)
            .map(|line| {
                format!(
                    "({}) {}\n",
                    self.who,
                    printable(line.trim_end(), QUESTION_MAX)
                )
            })
            .collect();
        let mut answers = Vec::new();
        for prompt in prompts {
            if self.failed.is_some() {
                // A round has to be answered; the server refuses an empty answer.
                answers.push(String::new());
                continue;
            }
            let question = format!(
                "{before}({}) {}",
                self.who,
                printable(prompt.text.trim_end_matches('\n'), QUESTION_MAX)
            );
            before.clear();
            let answer = if prompt.echo {
                self.prompter.line(&question)
            } else {
                self.prompter
                    .secret(&question)
                    .map(|secret| secret.expose().to_owned())
            };
            answers.push(answer.unwrap_or_else(|error| {
                self.failed = Some(error);
                String::new()
            }));
        }
        answers
    }
}

/// Goes on with a call that gave up waiting: libssh2 does so now and then on a busy machine, although the session blocks.
/// The watchdog sees to it that there is an end.
fn again(mut call: impl FnMut() -> Result<(), ssh2::Error>) -> Result<(), ssh2::Error> {
    loop {
        match call() {
            Err(error) if error.code() == super::handshake::EAGAIN => {
                std::thread::sleep(Duration::from_millis(2));
            }
            done => return done,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn public(kind: &str, seed: u8) -> PublicKey {
        let mut blob = u32::try_from(kind.len()).unwrap().to_be_bytes().to_vec();
        blob.extend_from_slice(kind.as_bytes());
        blob.extend_from_slice(&[0, 0, 0, 1, seed]);
        PublicKey {
            kind: kind.to_owned(),
            blob,
        }
    }

    fn private(path: &str, seed: u8, encrypted: bool, explicit: bool) -> Configured {
        let public = Some(public("ssh-ed25519", seed));
        let key = KeyFile::Private {
            text: String::new(),
            encrypted,
            public,
        };
        Configured {
            path: path.into(),
            explicit,
            key,
            certificates: Vec::new(),
        }
    }

    fn held(seed: u8) -> AgentKey {
        AgentKey {
            key: public("ssh-ed25519", seed),
            comment: format!("held {seed}"),
        }
    }

    fn labels(plan: &(VecDeque<Candidate>, Vec<String>)) -> Vec<&str> {
        plan.0.iter().map(|key| key.label.as_str()).collect()
    }

    #[test]
    fn configured_keys_come_first_and_needless_passphrases_last() {
        let configured = || {
            vec![
                private("/default-locked", 1, true, false),
                private("/plain", 2, false, false),
                private("/in-agent", 3, true, false),
                private("/named-locked", 4, true, true),
            ]
        };
        let all = plan(configured(), &[held(9), held(3)], false);
        let expected = [
            "/plain",
            "/in-agent (agent)",
            "/named-locked",
            "\"held 9\" (agent)",
            "/default-locked",
        ];
        assert_eq!(labels(&all), expected);
        let only = plan(configured(), &[held(9), held(3)], true);
        assert_eq!(
            labels(&only),
            [
                "/plain",
                "/in-agent (agent)",
                "/named-locked",
                "/default-locked"
            ]
        );
    }

    #[test]
    fn keys_that_cannot_be_used_are_remarked_on() {
        let half = |key| Configured {
            path: "/k".into(),
            explicit: true,
            key,
            certificates: Vec::new(),
        };
        let hardware = public("sk-ssh-ed25519@openssh.com", 1);
        let in_file = KeyFile::Private {
            text: String::new(),
            encrypted: false,
            public: Some(hardware.clone()),
        };
        for (key, agent, remark) in [
            (
                KeyFile::Public(public("ssh-ed25519", 1)),
                vec![],
                "only the public half",
            ),
            (
                in_file,
                vec![],
                "a security key works through an agent only",
            ),
        ] {
            let (keys, remarks) = plan(vec![half(key)], &agent, false);
            assert!(
                keys.is_empty() && remarks.len() == 1 && remarks[0].contains(remark),
                "{remarks:?}"
            );
        }
        let agent = [AgentKey {
            key: hardware.clone(),
            comment: String::new(),
        }];
        assert_eq!(
            labels(&plan(vec![half(KeyFile::Public(hardware))], &agent, true)),
            ["/k (agent)"]
        );
        let certificate = AgentKey {
            key: public("ssh-rsa-cert-v01@openssh.com", 1),
            comment: String::new(),
        };
        let (keys, remarks) = plan(Vec::new(), &[certificate], false);
        assert!(keys.is_empty() && remarks.len() == 1);
    }

    #[test]
    fn a_panic_inside_is_an_answer() {
        assert_eq!(without_panic(|| 1), Some(1));
        assert_eq!(without_panic(|| -> u8 { panic!("not shown") }), None);
    }
}
