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
//! Short packets never block. libssh2 has some of them (an end of file, the answer to a request of the server's) on its
//! stack, and knows a packet that it has begun to send by its address: it would refuse to go on with such a one, and no
//! other may be sent before. What the socket does not take of them waits here.
//!
//! Until a session's first shell starts, what comes is acknowledged at once. OpenSSH's server does not set `TCP_NODELAY`
//! before: it has a small packet wait until the one before is acknowledged (RFC 896), which systems put off for up to 40 ms.

use std::cell::{Cell, RefCell};
use std::ffi::{c_int, c_void};
use std::io;

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

/// The longest packet that never blocks. Those on the library's stack are shorter, the lists of algorithms that make it
/// crash are longer.
const SHORT: usize = 128;
/// How much of them may wait for the socket. Only a server that asks and asks, and reads nothing, gets that far.
const BEHIND_MAX: usize = 64 << 10;

#[cfg(any(target_os = "linux", target_os = "android"))]
const SEND_FLAGS: c_int = libc::MSG_NOSIGNAL;
#[cfg(not(any(target_os = "linux", target_os = "android")))]
const SEND_FLAGS: c_int = 0;

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
    /// The ends of short packets, in their order: they go before all else.
    static BEHIND: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
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
    BEHIND.take();
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

/// Whether short packets wait for the socket.
pub fn is_behind() -> bool {
    BEHIND.with_borrow(|behind| !behind.is_empty())
}

/// Sends what waits of short packets, and says whether that is all.
pub fn catch_up(socket: c_int) -> io::Result<bool> {
    BEHIND.with_borrow_mut(|behind| {
        while !behind.is_empty() {
            match usize::try_from(send_some(socket, behind)) {
                Ok(size) => drop(behind.drain(..size)),
                Err(_) => match io::Error::last_os_error() {
                    error if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                    error if error.kind() == io::ErrorKind::Interrupted => {}
                    error => return Err(error),
                },
            }
        }
        Ok(true)
    })
}

fn send_some(socket: c_int, bytes: &[u8]) -> libc::ssize_t {
    // SAFETY: the bytes are readable for their whole length.
    unsafe { libc::send(socket, bytes.as_ptr().cast(), bytes.len(), SEND_FLAGS) }
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
    match io::Error::last_os_error().raw_os_error() {
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
    _flags: c_int,
    _session: *mut *mut c_void,
) -> libc::ssize_t {
    let is_short = length <= SHORT;
    if !is_short && !DRAINED.get() && !PUT_OFF.replace(true) {
        return AGAIN;
    }
    // SAFETY: the library gives a buffer of `length` bytes.
    let bytes = unsafe { std::slice::from_raw_parts(buffer.cast::<u8>(), length) };
    let size = match catch_up(socket) {
        Ok(true) => result(send_some(socket, bytes)),
        Ok(false) => AGAIN,
        Err(_) => result(-1),
    };
    let sent = usize::try_from(size).unwrap_or(0);
    let size = if is_short && (size >= 0 || size == AGAIN) {
        keep(bytes.get(sent..).unwrap_or_default(), length)
    } else {
        size
    };
    if usize::try_from(size) == Ok(length) {
        PUT_OFF.set(false);
    }
    size
}

/// Keeps the end of a short packet, which counts as sent then.
fn keep(rest: &[u8], length: usize) -> libc::ssize_t {
    BEHIND.with_borrow_mut(|behind| {
        if behind.len() + rest.len() > BEHIND_MAX {
            return -(libc::ENOBUFS as libc::ssize_t);
        }
        behind.extend(rest);
        length.cast_signed()
    })
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

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::os::fd::AsRawFd as _;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn pass(socket: &UnixStream, bytes: &[u8]) -> libc::ssize_t {
        let (buffer, session) = (bytes.as_ptr().cast(), std::ptr::null_mut());
        send(socket.as_raw_fd(), buffer, bytes.len(), 0, session)
    }

    #[test]
    fn short_packets_are_taken_whatever_the_socket_has_room_for() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        DRAINED.set(true);
        let long = [b'l'; 1000];
        let mut expected = Vec::new();
        loop {
            let size = pass(&ours, &long);
            if size == AGAIN {
                break;
            }
            expected.extend(&long[..usize::try_from(size).unwrap()]);
        }
        for letter in b'a'..=b'z' {
            assert_eq!(pass(&ours, &[letter; SHORT]), SHORT.cast_signed());
            expected.extend([letter; SHORT]);
        }
        // A long one does not pass them.
        assert_eq!(pass(&ours, &long), AGAIN);
        assert!(is_behind());
        assert!(!catch_up(ours.as_raw_fd()).unwrap());
        theirs.set_nonblocking(true).unwrap();
        let mut came = Vec::new();
        while came.len() < expected.len() {
            // It ends for now, as there is nothing more to read.
            theirs.read_to_end(&mut came).unwrap_err();
            catch_up(ours.as_raw_fd()).unwrap();
        }
        assert!(came == expected && !is_behind());
        // The end of a long one that was put off is short: then the next long one is put off again.
        PUT_OFF.set(true);
        while pass(&ours, &long) != AGAIN {}
        assert_eq!(pass(&ours, &long[..SHORT]), SHORT.cast_signed());
        assert!(!PUT_OFF.get());
        theirs.read_to_end(&mut came).unwrap_err();
        assert!(catch_up(ours.as_raw_fd()).unwrap());
        theirs.read_to_end(&mut came).unwrap_err();
        // While more is to be looked at, a long one is put off once, and a short one is not.
        DRAINED.set(false);
        assert_eq!(pass(&ours, b"short"), 5);
        assert_eq!(pass(&ours, &long), AGAIN);
        assert_eq!(pass(&ours, &long), 1000);
        // Nobody reads, and somebody asks: there is an end to it.
        while pass(&ours, &long) != AGAIN {
            PUT_OFF.set(true);
        }
        while pass(&ours, &[0; SHORT]) > 0 {}
        assert_eq!(BEHIND.with_borrow(Vec::len) / SHORT, BEHIND_MAX / SHORT);
        drop(theirs);
        assert!(pass(&ours, &long) < 0 && catch_up(ours.as_raw_fd()).is_err());
    }
}
