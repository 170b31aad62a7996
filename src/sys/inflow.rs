//! How much one call of libssh2 may take from its socket, and whether it took anything.
//!
//! A call goes on reading for as long as something comes that is not for it, and a server can always have more to say:
//! messages that are to be ignored, say. So the library is given a `recv` that says "nothing for now" once enough has
//! come, until the caller has waited for the socket, and with it has looked at the clock and at everybody else.

use std::cell::{Cell, RefCell};
use std::ffi::{c_int, c_void};

use libssh2_sys as raw;
use nix::libc;
use ssh2::Session;

unsafe extern "C" {
    /// In the library, and not declared by libssh2-sys. The callback is cast to what it is by the library.
    fn libssh2_session_callback_set(
        session: *mut raw::LIBSSH2_SESSION,
        kind: c_int,
        callback: *mut c_void,
    ) -> *mut c_void;
}

/// `LIBSSH2_CALLBACK_RECV`.
const RECEIVE: c_int = 6;
/// Enough that a wait in between costs nothing.
const ENOUGH: usize = 256 << 10;

/// Enough for a version line and the lists of algorithms behind it.
const RECORDED: usize = 32 << 10;

thread_local! {
    static RECORD: RefCell<Option<Vec<u8>>> = const { RefCell::new(None) };
    static LEFT: Cell<usize> = const { Cell::new(ENOUGH) };
    static CAME: Cell<bool> = const { Cell::new(false) };
}

/// From now on calls of this session, which must not block, take no more than that between two [`renew`]s.
pub fn bound(session: &Session) {
    let mut locked = session.raw();
    let receive: Receive = receive;
    // SAFETY: the session is live and locked, and the library calls the function with what its type says.
    unsafe {
        libssh2_session_callback_set(&raw mut *locked, RECEIVE, receive as *mut c_void);
    }
}

/// The caller has waited: its next calls may take as much again.
pub fn renew() {
    LEFT.set(ENOUGH);
}

/// Until then, calls take nothing at all.
pub fn hold() {
    LEFT.set(0);
}

/// From now on the beginning of what this thread's calls take in is kept.
pub fn record() {
    RECORD.set(Some(Vec::new()));
}

/// What was kept, and no more is.
pub fn recorded() -> Vec<u8> {
    RECORD.take().unwrap_or_default()
}

/// Whether this thread's calls have taken anything in since this was last asked: of what is not for the caller, nothing
/// else tells.
pub fn has_come() -> bool {
    CAME.take()
}

type Receive =
    extern "C" fn(c_int, *mut c_void, libc::size_t, c_int, *mut *mut c_void) -> libc::ssize_t;

/// As the library's own: an error is its number below zero.
extern "C" fn receive(
    socket: c_int,
    buffer: *mut c_void,
    length: libc::size_t,
    flags: c_int,
    _session: *mut *mut c_void,
) -> libc::ssize_t {
    let again = -(libc::EAGAIN as libc::ssize_t);
    let left = LEFT.get();
    if left == 0 {
        return again;
    }
    // SAFETY: the library gives a buffer of at least `length` bytes, and less is asked for at most.
    let size = unsafe { libc::recv(socket, buffer, length.min(left), flags) };
    match usize::try_from(size) {
        Ok(size) => {
            LEFT.set(left - size);
            CAME.set(CAME.get() || size > 0);
            RECORD.with_borrow_mut(|record| {
                if let Some(record) = record.as_mut().filter(|record| record.len() < RECORDED) {
                    // SAFETY: recv(2) has written that many bytes there.
                    record.extend(unsafe { std::slice::from_raw_parts(buffer.cast::<u8>(), size) });
                }
            });
            size.cast_signed()
        }
        Err(_) => match std::io::Error::last_os_error().raw_os_error() {
            Some(code) if code != libc::EWOULDBLOCK => -(code as libc::ssize_t),
            _ => again,
        },
    }
}
