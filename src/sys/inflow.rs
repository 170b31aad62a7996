//! How much one call of libssh2 may take from its socket, and whether it took anything.
//!
//! A call goes on reading for as long as something comes that is not for it, and a server can always have more to say:
//! messages that are to be ignored, say. So the library is given a `recv` that says "nothing for now" once enough has
//! come, until the caller has waited for the socket, and with it has looked at the clock and at everybody else.
//!
//! It is given a `send` too. A server that asks for new keys is answered by libssh2 (1.11.2) within the call that took the
//! request in, and that call forgets a packet of which a part came before it would block: the rest is then written
//! through a null pointer. Here the answer would block before anything more is read, so there is no such packet.
//!
//! Until a session's first shell starts, what comes is acknowledged at once. OpenSSH's server does not set `TCP_NODELAY`
//! before: it has a small packet wait until the one before is acknowledged (RFC 896), which systems put off for up to 40 ms.

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

/// `LIBSSH2_CALLBACK_SEND` and `LIBSSH2_CALLBACK_RECV`.
const SEND: c_int = 5;
const RECEIVE: c_int = 6;
/// Enough that a wait in between costs nothing.
const ENOUGH: usize = 256 << 10;

/// "Nothing for now", to the library.
const AGAIN: libc::ssize_t = -(libc::EAGAIN as libc::ssize_t);

/// Enough for a version line and the lists of algorithms behind it.
const RECORDED: usize = 32 << 10;

thread_local! {
    static RECORD: RefCell<Option<Vec<u8>>> = const { RefCell::new(None) };
    static LEFT: Cell<usize> = const { Cell::new(ENOUGH) };
    static CAME: Cell<bool> = const { Cell::new(false) };
    /// Nothing is left of what was taken: the last call for more gave nothing.
    static DRAINED: Cell<bool> = const { Cell::new(true) };
    /// A packet was put off, and goes when it is sent again.
    static PUT_OFF: Cell<bool> = const { Cell::new(false) };
    /// What comes is acknowledged at once.
    static PROMPT: Cell<bool> = const { Cell::new(false) };
}

/// From now on calls of this session, which must not block, take no more than that between two [`renew`]s, and send
/// nothing new while they look at what they took.
pub fn bound(session: &Session) {
    let mut locked = session.raw();
    let (send, receive): (Send, Receive) = (send, receive);
    DRAINED.set(true);
    PUT_OFF.set(false);
    PROMPT.set(true);
    // SAFETY: the session is live and locked, and the library calls the functions with what their types say.
    unsafe {
        libssh2_session_callback_set(&raw mut *locked, SEND, send as *mut c_void);
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

/// What is sent next is not put off: its call is not repeated.
pub fn send_at_once() {
    PUT_OFF.set(true);
}

/// A shell has started: what comes is acknowledged when the system does so.
pub fn acknowledge_later() {
    PROMPT.set(false);
}

/// Has the system acknowledge what was taken from a TCP socket (tcp(7)). Elsewhere nothing happens.
fn acknowledge(socket: c_int) {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    {
        let on: c_int = 1;
        // SAFETY: the option's value is an int that outlives the call.
        unsafe {
            libc::setsockopt(
                socket,
                libc::IPPROTO_TCP,
                libc::TCP_QUICKACK,
                (&raw const on).cast(),
                c_int::BITS / 8,
            )
        };
    }
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    let _ = socket;
}

/// What both give: an error is its number below zero.
fn result(size: libc::ssize_t) -> libc::ssize_t {
    if size >= 0 {
        return size;
    }
    match std::io::Error::last_os_error().raw_os_error() {
        Some(code) if code != libc::EWOULDBLOCK && code != libc::EINTR => -(code as libc::ssize_t),
        _ => AGAIN,
    }
}

type Send =
    extern "C" fn(c_int, *const c_void, libc::size_t, c_int, *mut *mut c_void) -> libc::ssize_t;

extern "C" fn send(
    socket: c_int,
    buffer: *const c_void,
    length: libc::size_t,
    flags: c_int,
    _session: *mut *mut c_void,
) -> libc::ssize_t {
    if !DRAINED.get() && !PUT_OFF.replace(true) {
        return AGAIN;
    }
    // SAFETY: the library gives a buffer of `length` bytes.
    let size = unsafe { libc::send(socket, buffer, length, flags) };
    if usize::try_from(size) == Ok(length) {
        PUT_OFF.set(false);
    }
    result(size)
}

type Receive =
    extern "C" fn(c_int, *mut c_void, libc::size_t, c_int, *mut *mut c_void) -> libc::ssize_t;

extern "C" fn receive(
    socket: c_int,
    buffer: *mut c_void,
    length: libc::size_t,
    flags: c_int,
    _session: *mut *mut c_void,
) -> libc::ssize_t {
    let left = LEFT.get();
    let size = if left == 0 {
        AGAIN
    } else {
        // SAFETY: the library gives a buffer of at least `length` bytes, and less is asked for at most.
        result(unsafe { libc::recv(socket, buffer, length.min(left), flags) })
    };
    DRAINED.set(size <= 0);
    if let Ok(size) = usize::try_from(size) {
        LEFT.set(left - size);
        CAME.set(CAME.get() || size > 0);
        if size > 0 && PROMPT.get() {
            acknowledge(socket);
        }
        RECORD.with_borrow_mut(|record| {
            if let Some(record) = record.as_mut().filter(|record| record.len() < RECORDED) {
                // SAFETY: recv(2) has written that many bytes there.
                record.extend(unsafe { std::slice::from_raw_parts(buffer.cast::<u8>(), size) });
            }
        });
    }
    size
}
