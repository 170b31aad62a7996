//! How a keeper comes into being: it connects while it still has the user's terminal, and then lets go of everything.

use std::fs::{self, Permissions};
use std::io::{self, BufRead as _, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use super::connect::{KeeperSettings, StartupReport};
use super::path;
use super::server::{End, Keeper};
use super::transport::Transport;
use crate::clock;
use crate::connection::local::Launcher;
use crate::connection::openssh::Master;
use crate::connection::{Policy, Primer, ssh};
use crate::error::{Failure, Kind};
use crate::host::Destination;
use crate::sys;

/// How long a keeper without anything to do stays, where `RSIG_KEEPER_IDLE` says nothing else.
const IDLE: Duration = Duration::from_secs(600);
/// The longest that it stays: a year. No clock can be set beyond its range.
const IDLE_MAX: Duration = Duration::from_secs(365 * 24 * 3600);
/// How long it stays behind sudo, and doas: what they were asked once is not to hold for long.
const IDLE_SUDO: Duration = Duration::from_secs(60);
/// How much memory it may take beyond what it has when it begins, in bytes: no server needs more.
const MEMORY: u64 = 48 << 20;

/// Is a keeper, until it is no longer needed. Its settings are on standard input; standard output takes one word on how the
/// beginning went, and is closed then.
pub fn serve(socket: &Path, primer: Primer, warn: fn(&str), step: fn(&str)) -> io::Result<()> {
    let mut line = String::new();
    io::stdin().lock().take(1 << 20).read_line(&mut line)?;
    let lifeline = io::stdin().as_fd().try_clone_to_owned()?;
    let settings: KeeperSettings = serde_json::from_str(&line)?;
    if settings.private && settings.batch {
        // Made beside a connection that is there: no proxy may ask on the terminal either.
        sys::process::detach()?;
    }
    let born = Arc::new(AtomicBool::new(false));
    end_with_caller(&born)?;
    let begun = begin(
        socket,
        &settings,
        primer,
        warn,
        if settings.verbose { step } else { |_| () },
    );
    let birth = match &begun {
        Ok(_) => StartupReport::Ready,
        Err(failure) => StartupReport::Failed {
            kind: failure.kind,
            message: failure.message.clone(),
        },
    };
    let is_ssh = settings.destination.host.remote().is_some();
    let Ok(mut keeper) = begun else {
        return say(&birth);
    };
    if !(settings.private && settings.batch) {
        sys::process::detach()?;
    }
    born.store(true, Ordering::Release);
    say(&birth)?;
    sys::process::close_standard_streams()?;
    if settings.private {
        keeper.be_private(lifeline);
    } else {
        drop(lifeline);
    }
    // Its own shells would inherit the limits; it holds no keys, and no library that a server could have grow.
    if is_ssh {
        limit_core();
        limit_memory();
    }
    let end = keeper.run();
    // The next keeper removes a socket that is left behind; one that is bound there by now must stay.
    if (end == End::Done || !is_ssh) && keeper.is_found() {
        drop(fs::remove_file(socket));
    }
    Ok(())
}

/// Until it is born, a keeper that asks on the user's terminal must not outlive the command that the user has ended: the
/// command holds the other end of standard input.
fn end_with_caller(born: &Arc<AtomicBool>) -> io::Result<()> {
    let born = Arc::clone(born);
    let wait = move || {
        let ended = io::stdin().read(&mut [0]);
        if !born.load(Ordering::Acquire) && ended.is_ok() {
            ssh::prompt::restore_terminal();
            std::process::exit(1);
        }
    };
    thread::Builder::new()
        .name("keeper-caller".into())
        .stack_size(64 << 10)
        .spawn(wait)
        .map(drop)
}

fn say(birth: &StartupReport) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(&serde_json::to_vec(birth)?)?;
    out.flush()
}

fn begin(
    socket: &Path,
    settings: &KeeperSettings,
    primer: Primer,
    warn: fn(&str),
    step: fn(&str),
) -> Result<Keeper, Failure> {
    let policy = Policy {
        batch: settings.batch,
        keeper: false,
        starts: false,
        parallel: 1,
        verbose: settings.verbose,
        quiet: settings.quiet,
        warn,
        step,
    };
    let failed = |error: io::Error| {
        Failure::new(
            Kind::Failed,
            format!(
                "{}: the keeper's socket can't be made: {error}",
                settings.destination
            ),
        )
    };
    let transport = if settings.destination.host.remote().is_some() {
        let known = path::KnownConfiguration::of(&settings.destination);
        let entry = known.map(|known| known.entry()).ok();
        Transport::Ssh(Box::new(ssh::connect(
            &settings.destination,
            settings.configuration.clone(),
            entry.as_deref(),
            &policy,
        )?))
    } else {
        let control = path::control_socket(socket).map_err(failed)?;
        let master = Master::connect(&settings.destination, control, &policy)?;
        Transport::Processes(Launcher::new(&settings.destination, master).map_err(failed)?)
    };
    let listener = listen(socket).map_err(failed)?;
    Keeper::new(
        &settings.destination,
        transport,
        listener,
        socket,
        idle(&settings.destination),
        primer,
    )
    .map_err(failed)
}

/// Binds under another name and moves into place, so that nobody meets a socket that does not listen yet. The caller's
/// command holds the lock.
fn listen(socket: &Path) -> io::Result<UnixListener> {
    let temporary = socket.with_extension(format!("{}", std::process::id()));
    drop(fs::remove_file(&temporary));
    let listener = UnixListener::bind(&temporary)?;
    fs::set_permissions(&temporary, Permissions::from_mode(0o600))?;
    fs::rename(&temporary, socket)?;
    Ok(listener)
}

fn idle(destination: &Destination) -> Duration {
    let given = std::env::var("RSIG_KEEPER_IDLE")
        .ok()
        .and_then(|text| humantime::parse_duration(&text).ok());
    let given = given.unwrap_or(IDLE).min(IDLE_MAX);
    if destination.has_sudo() {
        given.min(clock::long(IDLE_SUDO))
    } else {
        given
    }
}

/// What is in its memory is nobody's business, keys among it.
fn limit_core() {
    use nix::sys::resource::{Resource, setrlimit};
    // A system that has no such limit does without.
    let _ = setrlimit(Resource::RLIMIT_CORE, 0, 0);
}

/// A hostile server must not make the keeper grow: libssh2 takes in whatever comes.
fn limit_memory() {
    use nix::sys::resource::{Resource, setrlimit};
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let now = |key| {
        let value = status.lines().find_map(|line| line.strip_prefix(key))?;
        value.trim().trim_end_matches(" kB").parse::<u64>().ok()
    };
    // The address space alone would not do: the C library reserves a good deal of it for each thread (proc(5)).
    for (key, resource) in [
        ("VmSize:", Resource::RLIMIT_AS),
        ("VmData:", Resource::RLIMIT_DATA),
    ] {
        if let Some(limit) = now(key).map(|kilobytes| kilobytes * 1024 + MEMORY) {
            // A system that has no such limit does without.
            let _ = setrlimit(resource, limit, limit);
        }
    }
}
