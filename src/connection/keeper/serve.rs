//! How a keeper starts: it connects while it still has the user's terminal, and then detaches from it and from its
//! caller.

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
use super::server::{Keeper, ShutdownReason};
use super::transport::Transport;
use crate::clock;
use crate::connection::local::Launcher;
use crate::connection::openssh::Master;
use crate::connection::{Policy, Primer, ssh};
use crate::error::{Failure, Kind};
use crate::host::Destination;
use crate::sys;

/// Idle timeout of a keeper, unless `RSIG_KEEPER_IDLE` sets another.
const IDLE_DEFAULT: Duration = Duration::from_secs(600);
/// Maximum idle timeout, a year: a deadline must be within the clock's range.
const IDLE_MAX: Duration = Duration::from_secs(365 * 24 * 3600);
/// Maximum idle timeout behind sudo or doas: what they granted once must not stay available for long.
const IDLE_SUDO_MAX: Duration = Duration::from_secs(60);
/// Maximum growth of the keeper's memory after its start, in bytes: no server needs more.
const MEMORY_GROWTH_MAX: u64 = 48 << 20;

/// Runs a keeper until it is no longer needed. The settings come on standard input. Standard output gets one report on
/// how the start went, and is then closed.
pub fn serve(socket: &Path, primer: Primer, warn: fn(&str), step: fn(&str)) -> io::Result<()> {
    let mut line = String::new();
    io::stdin().lock().take(1 << 20).read_line(&mut line)?;
    let lifeline = io::stdin().as_fd().try_clone_to_owned()?;
    let settings: KeeperSettings = serde_json::from_str(&line)?;
    if settings.private && settings.batch {
        // Started while another connection is in use: not even a proxy may prompt on the terminal.
        sys::process::detach()?;
    }
    let is_ready = Arc::new(AtomicBool::new(false));
    end_with_caller(&is_ready)?;
    let started = start(
        socket,
        &settings,
        primer,
        warn,
        if settings.verbose { step } else { |_| () },
    );
    let report = match &started {
        Ok(_) => StartupReport::Ready,
        Err(failure) => StartupReport::Failed {
            kind: failure.kind,
            message: failure.message.clone(),
        },
    };
    let is_ssh = settings.destination.host.remote().is_some();
    let Ok(mut keeper) = started else {
        return send_report(&report);
    };
    if !(settings.private && settings.batch) {
        sys::process::detach()?;
    }
    is_ready.store(true, Ordering::Release);
    send_report(&report)?;
    sys::process::close_standard_streams()?;
    if settings.private {
        keeper.make_private(lifeline);
    } else {
        drop(lifeline);
    }
    // For SSH only. Without SSH, the keeper's shells would inherit the limits, it holds no keys, and it has no library
    // whose memory a server could make grow.
    if is_ssh {
        limit_core();
        // libssh2 keeps whatever arrives: a hostile server must not make the keeper grow.
        sys::memory::limit(MEMORY_GROWTH_MAX);
    }
    let end = keeper.run();
    // The next keeper replaces a socket that is left behind. If another keeper's socket is there by now, it must stay.
    if (end == ShutdownReason::Done || !is_ssh) && keeper.owns_socket() {
        drop(fs::remove_file(socket));
    }
    Ok(())
}

/// Until it is ready, a keeper that prompts on the user's terminal must not outlive a command that the user has ended:
/// the command holds the other end of standard input.
fn end_with_caller(is_ready: &Arc<AtomicBool>) -> io::Result<()> {
    let is_ready = Arc::clone(is_ready);
    let wait = move || {
        let ended = io::stdin().read(&mut [0]);
        if !is_ready.load(Ordering::Acquire) && ended.is_ok() {
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

fn send_report(report: &StartupReport) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(&serde_json::to_vec(report)?)?;
    out.flush()
}

fn start(
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

/// Binds under another name and moves the socket into place, so that no command finds a socket that does not listen
/// yet. The command that starts the keeper holds the lock.
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
    let given = given.unwrap_or(IDLE_DEFAULT).min(IDLE_MAX);
    if destination.has_sudo() {
        given.min(clock::scaled(IDLE_SUDO_MAX))
    } else {
        given
    }
}

/// No core dumps: memory holds keys.
fn limit_core() {
    use nix::sys::resource::{Resource, setrlimit};
    // Fails on systems without such a limit, which is harmless.
    let _ = setrlimit(Resource::RLIMIT_CORE, 0, 0);
}
