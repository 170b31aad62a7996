//! Holds a server's key against the user's files, and asks the user about an unknown one.
//!
//! What is to be done with a key is decided in [`super::hostkey`]; here is the reading, the asking and the adding.

use super::config::{Resolved, StrictHostKeyChecking};
use super::connect::{HostKeyCheck, Note};
use super::hostkey::{
    self, Decision, HostKey, HostKeyProblem, HostName, IfUnknown, KnownHostsError, KnownHostsFile,
    NewEntry, WhyRefused,
};
use super::prompt::{PromptError, Prompter};

/// How often the question is put until it is answered.
const TRIES: u32 = 5;

/// The check of one connection.
pub struct KnownHosts<'a> {
    host: HostName,
    files: Result<Vec<KnownHostsFile>, KnownHostsError>,
    resolved: Resolved,
    notes: &'a dyn Fn(Note<'_>),
}

impl<'a> KnownHosts<'a> {
    /// Reads the files that the configuration names.
    pub fn new(resolved: &Resolved, notes: &'a dyn Fn(Note<'_>)) -> Self {
        let host = match &resolved.host_key_alias {
            Some(alias) => HostName::alias(alias),
            None => HostName::new(&resolved.host_name, resolved.port),
        };
        let files = hostkey::read_all(
            resolved
                .user_known_hosts
                .iter()
                .chain(&resolved.global_known_hosts),
        );
        Self {
            host,
            files,
            resolved: resolved.clone(),
            notes,
        }
    }

    fn add(&self, entry: &NewEntry) {
        let Some(file) = self.resolved.user_known_hosts.first() else {
            return;
        };
        let text = match hostkey::add(file, entry, self.resolved.hash_known_hosts) {
            Ok(()) => format!("{}: its key was added to {}", self.host, file.display()),
            Err(error) => format!("{}: its key is accepted this time only: {error}", self.host),
        };
        (self.notes)(Note::Warning(&text));
    }

    /// Whether the user wants to go on with an unknown key.
    fn ask(question: &str, key: &HostKey, prompter: &mut dyn Prompter) -> Result<(), WhyRefused> {
        let mut question = question;
        for _ in 0..TRIES {
            let answer = prompter.line(question).map_err(|error| match error {
                PromptError::Cancelled | PromptError::Interrupted(_) => WhyRefused::Declined,
                _ => WhyRefused::NoTerminal,
            })?;
            match hostkey::answer(&answer, &key.fingerprint()) {
                Some(true) => return Ok(()),
                Some(false) => return Err(WhyRefused::Declined),
                None => question = "Please type 'yes', 'no' or the fingerprint: ",
            }
        }
        Err(WhyRefused::Declined)
    }
}

impl HostKeyCheck for KnownHosts<'_> {
    fn preferred(&self) -> Vec<String> {
        let files = self.files.as_deref().unwrap_or_default();
        hostkey::preferred_key_types(files, &self.host)
            .into_iter()
            .map(str::to_owned)
            .collect()
    }

    fn check(&mut self, key: &[u8], prompter: &mut dyn Prompter) -> Result<(), String> {
        let files = self.files.as_deref().map_err(ToString::to_string)?;
        let host = self.host.clone();
        let Ok(key) = HostKey::read(key) else {
            return Err(HostKeyProblem::Malformed { host }.to_string());
        };
        let policy = match self.resolved.strict_host_key_checking {
            StrictHostKeyChecking::Yes => hostkey::StrictHostKeyChecking::Yes,
            StrictHostKeyChecking::Ask => hostkey::StrictHostKeyChecking::Ask,
            StrictHostKeyChecking::AcceptNew => hostkey::StrictHostKeyChecking::AcceptNew,
            StrictHostKeyChecking::No => hostkey::StrictHostKeyChecking::No,
        };
        let problem = match hostkey::decide(files, &host, &key, policy) {
            Decision::Accept { .. } => return Ok(()),
            Decision::Revoked { at } => HostKeyProblem::Revoked {
                host,
                key: key.label(),
                at,
            },
            Decision::Changed { at, known } => HostKeyProblem::Changed {
                host,
                key: key.label(),
                known,
                at,
            },
            Decision::Unknown { then, hints } => {
                let why = match then {
                    IfUnknown::Refuse(why) => why,
                    IfUnknown::AcceptNew(entry) => {
                        self.add(&entry);
                        return Ok(());
                    }
                    IfUnknown::Ask(entry) => {
                        match Self::ask(
                            &hostkey::question(&host, &key.label(), &hints),
                            &key,
                            prompter,
                        ) {
                            Ok(()) => {
                                self.add(&entry);
                                return Ok(());
                            }
                            Err(why) => why,
                        }
                    }
                };
                let file = self
                    .resolved
                    .user_known_hosts
                    .first()
                    .map(std::path::PathBuf::as_path);
                HostKeyProblem::unknown(&host, &key, why, hints, file)
            }
        };
        Err(problem.to_string())
    }
}
