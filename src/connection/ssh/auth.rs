//! Authentication (RFC 4252), as ssh(1) does it, by means of libssh2.
//!
//! The first key is tried without asking the server which methods it accepts: that request costs a round trip and, once
//! an attempt has failed, counts as another failure. Servers end the session at the sixth failure (`MaxAuthTries`).
//!
//! Not handled: GSSAPI, host-based authentication, PKCS#11, security keys without an agent, a
//! certificate file whose private key is with an agent only, and the change of an expired password.

use std::collections::VecDeque;
use std::time::Duration;

use ssh2::{Error, ErrorCode, Session};

use super::agent::Agent;
use super::config::Resolved;
use super::identities::{self, Candidate};
use super::interactive::Dialogue;
use super::key::PublicKey;
use super::keyfile::PrivateKey;
use super::link::{Clock, Link, TIMEOUT};
use super::login_record::LoginRecord;
use super::prompt::Prompter;
use crate::connection::Policy;
use crate::error::{Failure, Kind};
use crate::escape::printable;
use crate::sys::userauth;

/// How long the server may take to answer one key or password. PAM modules can be slow.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);
/// The same for keyboard-interactive, where the user may have to make a telephone call.
const INTERACTIVE_LIMIT: Duration = Duration::from_secs(120);
/// Number of failures after which the last of sshd's six attempts is reserved for a password.
pub(super) const MAX_FAILURES: u32 = 5;
/// With more keys than this and none of them configured, the server is first asked for its methods: the request does
/// not count as a failure then, and the right key may be the fifth.
const MAX_BLIND_KEYS: usize = 4;
/// Maximum number of further steps, which a server could require for ever.
const MAX_STEPS: u32 = 5;
/// As in ssh(1).
const MAX_PASSPHRASES: u32 = 3;

const PUBLIC_KEY: &str = "publickey";
pub(super) const INTERACTIVE: &str = "keyboard-interactive";
pub(super) const PASSWORD: &str = "password";

/// The methods that the configuration allows, in order.
pub(super) fn method_order(config: &Resolved) -> Vec<&'static str> {
    let enabled = |method: &&str| match *method {
        PUBLIC_KEY => config.is_on("pubkeyauthentication", true),
        INTERACTIVE => config.is_on("kbdinteractiveauthentication", true),
        _ => config.is_on("passwordauthentication", true),
    };
    let all = [PUBLIC_KEY, INTERACTIVE, PASSWORD];
    let preferred = match config.text("preferredauthentications") {
        None => all.to_vec(),
        Some(names) => names
            .split(',')
            .filter_map(|name| all.into_iter().find(|method| *method == name.trim()))
            .collect(),
    };
    preferred.into_iter().filter(enabled).collect()
}

/// The result of one attempt.
#[derive(Debug)]
enum Outcome {
    /// The login is complete.
    Accepted,
    /// The server refused.
    Refused,
    /// Either a refusal, or one of several required steps is done: the server's list of methods shows which.
    NoOrPartial,
    /// Nothing was sent that counts as an attempt; the reason.
    Unusable(String),
}

/// libssh2's message if a signature could not be made: for a private key from a file, the passphrase is wrong. The code
/// is the same as for a refused signature.
const NO_SIGNATURE: &str = "Callback returned error";
/// libssh2's messages if the reply did not arrive, for both kinds of attempts.
const NO_ANSWER: [&str; 2] = [
    "Waiting for USERAUTH response",
    "Waiting for publickey USERAUTH response",
];
const NO_INTERACTIVE_ANSWER: &str = "Waiting for keyboard USERAUTH response";

/// Interprets libssh2's result; an error if the connection is gone.
fn outcome(result: Result<(), Error>) -> Result<Outcome, Error> {
    let Err(error) = result else {
        return Ok(Outcome::Accepted);
    };
    let unusable = |reason: &str| Ok(Outcome::Unusable(reason.to_owned()));
    let ErrorCode::Session(code) = error.code() else {
        return Err(error);
    };
    let message = error.message();
    match code {
        libssh2_sys::LIBSSH2_ERROR_AUTHENTICATION_FAILED if message != NO_INTERACTIVE_ANSWER => {
            Ok(Outcome::Refused)
        }
        libssh2_sys::LIBSSH2_ERROR_PUBLICKEY_UNVERIFIED if message == NO_SIGNATURE => {
            unusable("no signature could be made with it")
        }
        libssh2_sys::LIBSSH2_ERROR_PUBLICKEY_UNVERIFIED if !NO_ANSWER.contains(&message) => {
            Ok(Outcome::NoOrPartial)
        }
        libssh2_sys::LIBSSH2_ERROR_FILE => unusable("it can't be read as a key"),
        libssh2_sys::LIBSSH2_ERROR_METHOD_NONE => {
            unusable("the server accepts none of its signature algorithms")
        }
        libssh2_sys::LIBSSH2_ERROR_KEYFILE_AUTH_FAILED => unusable("the passphrase is wrong"),
        libssh2_sys::LIBSSH2_ERROR_PASSWORD_EXPIRED => {
            unusable("the password has expired: log in with ssh once and change it")
        }
        _ => Err(error),
    }
}

/// Authenticates as the configuration says.
pub(super) fn authenticate(
    link: &Link,
    config: &Resolved,
    prompter: Prompter,
    policy: &Policy,
    last: Option<&LoginRecord>,
) -> Result<LoginRecord, Failure> {
    let methods_left = method_order(config);
    let mut login = Login {
        link,
        config,
        prompter,
        policy,
        agent: None,
        keys: VecDeque::new(),
        methods_left,
        server: None,
        failures: 0,
        interactive_tries: 0,
        password_tries: 0,
        steps: 0,
        refused: Vec::new(),
        has_sent_request: false,
        tried: Vec::new(),
        remarks: Vec::new(),
        last,
        key: None,
    };
    if login.methods_left.contains(&PUBLIC_KEY) {
        login.find_keys()?;
    }
    login.run()
}

/// One login in progress.
pub(super) struct Login<'a> {
    link: &'a Link,
    pub(super) config: &'a Resolved,
    pub(super) prompter: Prompter,
    policy: &'a Policy,
    agent: Option<Agent>,
    pub(super) keys: VecDeque<Candidate>,
    /// Methods not used up yet, in order.
    methods_left: Vec<&'static str>,
    /// The methods that the server accepts; `None` before it was asked.
    pub(super) server: Option<Vec<String>>,
    /// Failures that the server counts.
    pub(super) failures: u32,
    interactive_tries: u32,
    password_tries: u32,
    /// How many of several required steps are done.
    pub(super) steps: u32,
    /// Keys that the server refused; it may accept them in a further step.
    refused: Vec<Candidate>,
    /// Whether any request was sent to the server.
    has_sent_request: bool,
    /// What was refused, for the error.
    pub(super) tried: Vec<String>,
    /// What could not be tried, and why.
    pub(super) remarks: Vec<String>,
    /// How the last login succeeded.
    last: Option<&'a LoginRecord>,
    /// Fingerprint of the key that was tried last.
    key: Option<String>,
}

impl Login<'_> {
    fn find_keys(&mut self) -> Result<(), Failure> {
        if let Some(path) = self.config.agent()? {
            match Agent::open(path) {
                Ok(agent) => self.agent = Some(agent),
                Err(reason) => {
                    self.step(&reason);
                    self.remarks.push(reason);
                }
            }
        }
        let held = self.agent.as_ref().map(Agent::keys).unwrap_or_default();
        let warn = self.policy.warn;
        let configured = identities::read(self.config, warn, &mut self.remarks)?;
        let only_configured = self.config.is_on("identitiesonly", false);
        self.keys = identities::plan(configured, held, only_configured, &mut self.remarks);
        let known = |key: &Candidate| self.last.is_some_and(|last| last.is_by(key));
        let known = self.keys.iter().position(known);
        if let Some(key) = known.and_then(|key| self.keys.remove(key)) {
            self.keys.push_front(key);
        }
        Ok(())
    }

    fn step(&self, text: &str) {
        (self.policy.step)(text);
    }

    /// Whether to start without asking the server for its methods.
    fn is_blind(&self) -> bool {
        let few = self.keys.len() <= MAX_BLIND_KEYS;
        let last = |key: &Candidate| self.last.is_some_and(|last| last.is_by(key));
        match (self.keys.front(), self.last) {
            (Some(key), _) => {
                self.methods_left.first() == Some(&PUBLIC_KEY)
                    && (key.configured || few || last(key))
            }
            (None, last) => {
                let can_ask = self.prompter.available().is_ok();
                last.is_some_and(|last| {
                    can_ask && self.methods_left.contains(&last.method.as_str())
                })
            }
        }
    }

    fn run(mut self) -> Result<LoginRecord, Failure> {
        if !self.is_blind() && self.ask_server()? {
            return Ok(LoginRecord::default());
        }
        while let Some(method) = self.next_method() {
            self.has_sent_request = true;
            let outcome = match method {
                PUBLIC_KEY => self.try_key()?,
                INTERACTIVE => self.try_interactive()?,
                _ => self.try_password()?,
            };
            match outcome {
                Outcome::Accepted => {
                    return Ok(LoginRecord {
                        method: method.to_owned(),
                        key: self.key.filter(|_| method == PUBLIC_KEY),
                    });
                }
                Outcome::Unusable(_) => {}
                Outcome::Refused => {
                    self.failures += 1;
                    // A password that was accepted as the first of two steps looks like a wrong one.
                    let may_be_partial = method != PUBLIC_KEY && self.failures < MAX_FAILURES;
                    if (self.server.is_none() || may_be_partial) && self.ask_server()? {
                        return Ok(LoginRecord::default());
                    }
                }
                Outcome::NoOrPartial => {
                    // The server had announced that it accepts this key, so the refusal means that a further step is
                    // required. If there is an earlier list of methods to compare with, asking again makes sure.
                    if self.server.is_none() {
                        self.start_next_step();
                    }
                    if self.ask_server()? {
                        return Ok(LoginRecord::default());
                    }
                }
            }
        }
        Err(Failure::new(Kind::Auth, self.refusal()))
    }

    fn server_takes(&self, method: &str) -> bool {
        let listed = |names: &Vec<String>| names.iter().any(|name| name == method);
        self.server.as_ref().is_none_or(listed)
    }

    /// The next method; `None` if all are used up.
    fn next_method(&mut self) -> Option<&'static str> {
        let can_ask = self.prompter.available().is_ok();
        let takes_passwords = |method: &&str| *method != PUBLIC_KEY && self.server_takes(method);
        let passwords_wait = can_ask && self.methods_left.iter().any(takes_passwords);
        if self.keys.is_empty() || (self.failures >= MAX_FAILURES && passwords_wait) {
            self.drop_method(PUBLIC_KEY);
        }
        self.methods_left
            .iter()
            .copied()
            .find(|method| self.server_takes(method) && (*method == PUBLIC_KEY || can_ask))
    }

    fn drop_method(&mut self, method: &str) {
        self.methods_left.retain(|left| *left != method);
    }

    /// Asks the server which methods it accepts. True if this request completed the login.
    fn ask_server(&mut self) -> Result<bool, Failure> {
        // sshd counts a `none` request as a failure unless it is the very first request.
        let is_counted = std::mem::replace(&mut self.has_sent_request, true);
        let user = &self.config.user;
        let answer = self.link.drive(&Clock::within(ANSWER_LIMIT), |session| {
            userauth::methods(session, user)
        });
        if self.link.session.authenticated() {
            self.step("the server asks for no authentication");
            return Ok(true);
        }
        let answer = answer.map_err(|error| self.lost(&error))?;
        if is_counted {
            self.failures += 1;
        }
        self.show_banner();
        let names: Vec<String> = answer
            .split(|byte| *byte == b',')
            .filter(|name| !name.is_empty())
            .take(20)
            .map(|name| printable(name, 60))
            .collect();
        self.step(&format!("the server accepts: {}", names.join(", ")));
        if self.server.as_ref().is_some_and(|before| *before != names) {
            // The list has changed: a step is done, and all methods may be tried again.
            self.start_next_step();
        }
        self.server = Some(names);
        Ok(false)
    }

    fn start_next_step(&mut self) {
        self.steps += 1;
        if self.steps > MAX_STEPS {
            return;
        }
        self.keys.extend(self.refused.drain(..));
        self.interactive_tries = 0;
        self.password_tries = 0;
        self.methods_left = method_order(self.config);
        self.step("the server wants a further step");
    }

    /// Shows the server's banner (RFC 4252 5.4).
    fn show_banner(&self) {
        let level = self.config.text("loglevel").unwrap_or_default();
        // `ssh -G` prints QUIET under another name.
        let is_quiet = ["SILENT", "QUIET", "FATAL", "ERROR"]
            .iter()
            .any(|quiet| level.eq_ignore_ascii_case(quiet));
        if !(is_quiet || self.policy.quiet)
            && self.server.is_none()
            && let Ok(Some(banner)) = self.link.session.userauth_banner()
        {
            for line in banner.lines().take(30) {
                (self.policy.warn)(&printable(line, 200));
            }
        }
    }

    /// Makes one attempt and waits for its result.
    fn attempt(
        &self,
        clock: &Clock,
        call: impl FnMut(&mut Session) -> Result<(), Error>,
    ) -> Result<Outcome, Failure> {
        outcome(self.link.drive(clock, call)).map_err(|error| self.lost(&error))
    }

    fn try_key(&mut self) -> Result<Outcome, Failure> {
        let Some(key) = self.keys.pop_front() else {
            return Ok(Outcome::Unusable(String::new()));
        };
        self.step(&format!("trying the key {}", key.label));
        self.key = key.public.as_ref().map(PublicKey::fingerprint);
        if !self.tried.contains(&key.label) {
            self.tried.push(key.label.clone());
        }
        let outcome = match &key.private {
            None => self.offer_from_agent(&key)?,
            Some(private) if private.encrypted => self.offer_encrypted(&key, private)?,
            Some(private) => self.offer(&key, private, None)?,
        };
        match &outcome {
            Outcome::Refused => self.refused.push(key),
            Outcome::Unusable(reason) => {
                self.tried.retain(|tried| *tried != key.label);
                self.remarks.push(format!("{}: {reason}", key.label));
            }
            _ => {}
        }
        Ok(outcome)
    }

    fn offer_from_agent(&self, key: &Candidate) -> Result<Outcome, Failure> {
        let (Some(agent), Some(public)) = (&self.agent, &key.public) else {
            return Ok(Outcome::Unusable("the agent no longer responds".to_owned()));
        };
        let clock = Clock::within(ANSWER_LIMIT);
        let mut refused = None;
        let mut sign = |data: &[u8]| {
            // The agent has a timeout of its own: it may be asking its user.
            let signed = clock.paused(|| agent.sign(public, data));
            signed.map_err(|refusal| {
                refused = Some(refusal.reason);
                refusal.code
            })
        };
        let outcome = self.attempt(&clock, |session| {
            userauth::public_key(session, &self.config.user, &public.blob, &mut sign)
        })?;
        Ok(match (outcome, refused) {
            (Outcome::Unusable(_), Some(reason)) => Outcome::Unusable(reason),
            (outcome, _) => outcome,
        })
    }

    fn offer(
        &self,
        key: &Candidate,
        private: &PrivateKey,
        passphrase: Option<&str>,
    ) -> Result<Outcome, Failure> {
        let line = key.public.as_ref().map(PublicKey::to_line);
        let user = &self.config.user;
        self.attempt(&Clock::within(ANSWER_LIMIT), |session| {
            session.userauth_pubkey_memory(user, line.as_deref(), &private.text, passphrase)
        })
    }

    /// Offers an encrypted key. If its public half is known, the server is asked about it first, so that no passphrase
    /// is typed for a key that the server refuses.
    fn offer_encrypted(
        &mut self,
        key: &Candidate,
        private: &PrivateKey,
    ) -> Result<Outcome, Failure> {
        if key.public.is_some() {
            match self.offer(key, private, None)? {
                Outcome::Unusable(_) => {}
                other => return Ok(other),
            }
        }
        let unusable = |reason: &str| Ok(Outcome::Unusable(reason.to_owned()));
        for _ in 0..MAX_PASSPHRASES {
            let question = format!("Enter passphrase for key '{}': ", key.label);
            let passphrase = match self.prompter.secret(&question) {
                Ok(passphrase) => passphrase,
                Err(error) => return unusable(&format!("it needs a passphrase: {error}")),
            };
            // An empty passphrase skips this key, as in ssh(1).
            if passphrase.is_empty() {
                return unusable("no passphrase was given");
            }
            match self.offer(key, private, Some(&passphrase))? {
                Outcome::Unusable(_) => {}
                other => return Ok(other),
            }
        }
        unusable("the passphrase was wrong, or the file is damaged")
    }

    pub(super) fn who(&self) -> String {
        format!("{}@{}", self.config.user, self.config.host_name)
    }

    fn max_passwords(&self) -> u32 {
        self.config.number("numberofpasswordprompts", 3)
    }

    fn try_password(&mut self) -> Result<Outcome, Failure> {
        self.password_tries += 1;
        if self.password_tries >= self.max_passwords() {
            self.drop_method(PASSWORD);
        }
        let question = format!("{}'s password: ", self.who());
        let password = match self.prompter.secret(&question) {
            Ok(password) => password,
            Err(error) => return Ok(self.no_answer(PASSWORD, &error)),
        };
        let outcome = self.attempt(&Clock::within(ANSWER_LIMIT), |session| {
            session.userauth_password(&self.config.user, &password)
        })?;
        self.note_try(PASSWORD, &outcome);
        Ok(outcome)
    }

    fn try_interactive(&mut self) -> Result<Outcome, Failure> {
        self.interactive_tries += 1;
        if self.interactive_tries >= self.max_passwords() {
            self.drop_method(INTERACTIVE);
        }
        let clock = Clock::within(INTERACTIVE_LIMIT);
        let mut dialogue = Dialogue {
            who: self.who(),
            prompter: self.prompter,
            clock: &clock,
            rounds: 0,
            failed: None,
            is_endless: false,
        };
        let user = &self.config.user;
        let result = self.link.drive(&clock, |session| {
            let result = session.userauth_keyboard_interactive(user, &mut dialogue);
            if dialogue.is_endless {
                return Err(Error::unknown());
            }
            result
        });
        let (rounds, failed, is_endless) = (dialogue.rounds, dialogue.failed, dialogue.is_endless);
        if is_endless {
            let reason = "the server kept asking questions without an end";
            return Err(Failure::new(Kind::Auth, reason));
        }
        if let (Err(_), Some(error)) = (&result, failed) {
            return Ok(self.no_answer(INTERACTIVE, &error));
        }
        let outcome = outcome(result).map_err(|error| self.lost(&error))?;
        if rounds == 0 {
            // Refused before the server asked anything: another attempt would not help.
            self.drop_method(INTERACTIVE);
        }
        self.note_try(INTERACTIVE, &outcome);
        Ok(outcome)
    }

    fn no_answer(&mut self, method: &str, error: &str) -> Outcome {
        self.drop_method(method);
        self.remarks.push(format!("{method}: {error}"));
        Outcome::Unusable(String::new())
    }

    fn note_try(&mut self, method: &str, outcome: &Outcome) {
        match outcome {
            Outcome::Refused | Outcome::NoOrPartial
                if !self.tried.iter().any(|tried| tried == method) =>
            {
                self.tried.push(method.to_owned());
            }
            Outcome::Unusable(reason) => {
                self.drop_method(method);
                self.remarks.push(format!("{method}: {reason}"));
            }
            _ => {}
        }
    }

    /// The failure if the connection is lost or the server stops responding.
    fn lost(&self, error: &Error) -> Failure {
        let seconds = ANSWER_LIMIT.as_secs();
        let failures = self.failures;
        let (kind, message) = if error.code() == TIMEOUT {
            let what = "the server stopped answering during authentication";
            (Kind::Unreachable, format!("{what} (waited {seconds} s)"))
        } else if failures > 0 {
            let what = format!("the server ended the session after {failures} failed tries");
            (Kind::Auth, format!("{what}; {}", self.refusal()))
        } else {
            let reason = printable(error.message(), 200);
            let what = "the connection broke during authentication";
            (Kind::Unreachable, format!("{what}: {reason}"))
        };
        Failure::new(kind, message)
    }
}
