//! Socket callbacks for libssh2: they limit how much one call reads, and never leave a packet half sent where the
//! library could not continue it.
//!
//! A libssh2 call keeps reading as long as packets arrive that are not for its caller, and a server can send such
//! packets for ever (SSH_MSG_IGNORE, for example). So the library gets a `recv` that reports "would block" once
//! `READ_MAX` bytes were read, until the caller has polled the socket again and so has served its timers and its
//! other clients.
//!
//! The library gets a `send` too, for two faults of libssh2 1.11.2:
//!
//! - A key exchange that the server requests is answered inside the call that read the request. If part of an outgoing
//!   packet had been sent before, that call forgets it when it would block, and the rest is later written through a
//!   null pointer. Here the answer is deferred before anything more is read, so no packet is ever half sent at that
//!   point.
//! - Some short packets (a channel's end of file, the reply to a server's request) are built on the library's stack,
//!   and a packet in transmission is recognised by its address. If one were cut short, the library might never be able
//!   to resume it, and no other packet may precede it. So short packets never block: what the socket does not take is
//!   queued here.
//!
//! Until a session's first shell starts, everything received is acknowledged at once. OpenSSH's server sets
//! `TCP_NODELAY` only then. Before, it holds a small packet back until the previous one is acknowledged (RFC 896),
//! which systems delay by up to 40 ms.

use std::cell::{Cell, RefCell};
use std::ffi::{c_int, c_void};
use std::io;

use libssh2_sys as raw;
use nix::libc;
use ssh2::Session;

unsafe extern "C" {
    /// Exported by libssh2 but not declared by libssh2-sys. The library casts the callback to its real type.
    fn libssh2_session_callback_set(
        session: *mut raw::LIBSSH2_SESSION,
        kind: c_int,
        callback: *mut c_void,
    ) -> *mut c_void;
}

/// `LIBSSH2_CALLBACK_SEND` and `LIBSSH2_CALLBACK_RECV`.
const SEND: c_int = 5;
const RECEIVE: c_int = 6;
/// How much may be read between two polls of the socket, in bytes: so much that the polls cost nothing.
const READ_MAX: usize = 256 << 10;

/// The longest packet that never blocks, in bytes. Packets on the library's stack are shorter; the algorithm lists that
/// must be deferred are longer.
const SHORT_PACKET_MAX: usize = 128;
/// How much of short packets may be queued, in bytes. Only a server that keeps sending requests and reads nothing gets
/// there.
const QUEUE_MAX: usize = 64 << 10;

#[cfg(any(target_os = "linux", target_os = "android"))]
const SEND_FLAGS: c_int = libc::MSG_NOSIGNAL;
#[cfg(not(any(target_os = "linux", target_os = "android")))]
const SEND_FLAGS: c_int = 0;

/// Tells the library that the call would block.
const WOULD_BLOCK: libc::ssize_t = -(libc::EAGAIN as libc::ssize_t);

/// How much is recorded, in bytes: enough for the server's version line and its algorithm lists.
const RECORD_MAX: usize = 32 << 10;

thread_local! {
    static RECORD: RefCell<Option<Vec<u8>>> = const { RefCell::new(None) };
    static READ_LEFT: Cell<usize> = const { Cell::new(READ_MAX) };
    static HAS_READ: Cell<bool> = const { Cell::new(false) };
    /// The socket had no more data at the last read, so the library is not in the middle of received data.
    static DRAINED: Cell<bool> = const { Cell::new(true) };
    /// A long packet was deferred once; it is sent when the library tries again.
    static DEFERRED: Cell<bool> = const { Cell::new(false) };
    /// Ends of short packets that the socket did not take, in order. They are sent before anything else.
    static QUEUE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    /// Received data is acknowledged at once.
    static QUICK_ACK: Cell<bool> = const { Cell::new(false) };
}

/// Installs the callbacks. The session must be non-blocking. Its calls then read at most `READ_MAX` bytes between two
/// calls of `renew`, and start no long packet while received data is being processed.
pub fn install(session: &Session) {
    let mut locked = session.raw();
    let (send, receive): (Send, Receive) = (send, receive);
    DRAINED.set(true);
    DEFERRED.set(false);
    QUEUE.take();
    QUICK_ACK.set(true);
    // SAFETY: the session is live and locked, and the library calls the functions with what their types say.
    unsafe {
        libssh2_session_callback_set(&raw mut *locked, SEND, send as *mut c_void);
        libssh2_session_callback_set(&raw mut *locked, RECEIVE, receive as *mut c_void);
    }
}

/// Lets the next calls read up to `READ_MAX` bytes again. To be called after the socket was polled.
pub fn renew() {
    READ_LEFT.set(READ_MAX);
}

/// Lets the next calls read nothing, until `renew`.
pub fn block_reads() {
    READ_LEFT.set(0);
}

/// Starts to record what this thread's calls read, up to `RECORD_MAX` bytes.
pub fn record() {
    RECORD.set(Some(Vec::new()));
}

/// Stops recording and returns what was recorded.
pub fn recorded() -> Vec<u8> {
    RECORD.take().unwrap_or_default()
}

/// Whether this thread's calls have read anything since the last call of this function. Nothing else shows data that
/// was not for the caller.
pub fn has_read() -> bool {
    HAS_READ.take()
}

/// Whether ends of short packets are queued.
pub fn has_queue() -> bool {
    QUEUE.with_borrow(|queue| !queue.is_empty())
}

/// Sends the queue. Returns whether it is empty now.
pub fn send_queue(socket: c_int) -> io::Result<bool> {
    QUEUE.with_borrow_mut(|queue| {
        while !queue.is_empty() {
            match usize::try_from(send_some(socket, queue)) {
                Ok(size) => drop(queue.drain(..size)),
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

/// Leaves acknowledgements to the system again. To be called once a shell has started.
pub fn acknowledge_later() {
    QUICK_ACK.set(false);
}

/// Makes the system acknowledge the data that was read from a TCP socket (tcp(7)). Does nothing on other systems.
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

/// The result of both callbacks: a size, or a negative error number.
fn result(size: libc::ssize_t) -> libc::ssize_t {
    if size >= 0 {
        return size;
    }
    match io::Error::last_os_error().raw_os_error() {
        Some(code) if code != libc::EWOULDBLOCK && code != libc::EINTR => -(code as libc::ssize_t),
        _ => WOULD_BLOCK,
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
    let is_short = length <= SHORT_PACKET_MAX;
    if !is_short && !DRAINED.get() && !DEFERRED.replace(true) {
        return WOULD_BLOCK;
    }
    // SAFETY: the library gives a buffer of `length` bytes.
    let bytes = unsafe { std::slice::from_raw_parts(buffer.cast::<u8>(), length) };
    let size = match send_queue(socket) {
        Ok(true) => result(send_some(socket, bytes)),
        Ok(false) => WOULD_BLOCK,
        Err(_) => result(-1),
    };
    let sent = usize::try_from(size).unwrap_or(0);
    let size = if is_short && (size >= 0 || size == WOULD_BLOCK) {
        enqueue(bytes.get(sent..).unwrap_or_default(), length)
    } else {
        size
    };
    if usize::try_from(size) == Ok(length) {
        DEFERRED.set(false);
    }
    size
}

/// Queues the end of a short packet of `length` bytes, and returns `length`: to the library the packet is sent.
fn enqueue(rest: &[u8], length: usize) -> libc::ssize_t {
    QUEUE.with_borrow_mut(|queue| {
        if queue.len() + rest.len() > QUEUE_MAX {
            return -(libc::ENOBUFS as libc::ssize_t);
        }
        queue.extend(rest);
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
    let left = READ_LEFT.get();
    let size = if left == 0 {
        WOULD_BLOCK
    } else {
        // SAFETY: the library gives a buffer of at least `length` bytes, and at most that many are requested.
        result(unsafe { libc::recv(socket, buffer, length.min(left), flags) })
    };
    DRAINED.set(size <= 0);
    if let Ok(size) = usize::try_from(size) {
        READ_LEFT.set(left - size);
        HAS_READ.set(HAS_READ.get() || size > 0);
        if size > 0 && QUICK_ACK.get() {
            acknowledge(socket);
        }
        RECORD.with_borrow_mut(|record| {
            if let Some(record) = record.as_mut().filter(|record| record.len() < RECORD_MAX) {
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
    use std::time::{Duration, Instant};

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
            if size == WOULD_BLOCK {
                break;
            }
            expected.extend(&long[..usize::try_from(size).unwrap()]);
        }
        for letter in b'a'..=b'z' {
            assert_eq!(
                pass(&ours, &[letter; SHORT_PACKET_MAX]),
                SHORT_PACKET_MAX.cast_signed()
            );
            expected.extend([letter; SHORT_PACKET_MAX]);
        }
        assert_eq!(pass(&ours, &long), WOULD_BLOCK);
        assert!(has_queue());
        assert!(!send_queue(ours.as_raw_fd()).unwrap());
        theirs.set_nonblocking(true).unwrap();
        let mut came = Vec::new();
        theirs.read_to_end(&mut came).unwrap_err();
        // Now that there is room, a long packet does not overtake them.
        assert_eq!(pass(&ours, &long), 1000);
        expected.extend(long);
        while came.len() < expected.len() {
            // Ends with an error, since nothing more can be read for now.
            theirs.read_to_end(&mut came).unwrap_err();
            send_queue(ours.as_raw_fd()).unwrap();
        }
        assert!(came == expected && !has_queue());
        // The end of a deferred long packet is short. The next long packet is deferred again.
        while pass(&ours, &long) != WOULD_BLOCK {}
        DEFERRED.set(true);
        assert_eq!(
            pass(&ours, &long[..SHORT_PACKET_MAX]),
            SHORT_PACKET_MAX.cast_signed()
        );
        assert!(!DEFERRED.get());
        theirs.read_to_end(&mut came).unwrap_err();
        assert!(send_queue(ours.as_raw_fd()).unwrap());
        theirs.read_to_end(&mut came).unwrap_err();
        // While received data is being processed, a long packet is deferred once and a short one is not.
        DRAINED.set(false);
        assert_eq!(pass(&ours, b"short"), 5);
        assert_eq!(pass(&ours, &long), WOULD_BLOCK);
        assert_eq!(pass(&ours, &long), 1000);
        // The queue is limited if the peer keeps sending requests and reads nothing.
        DEFERRED.set(true);
        while pass(&ours, &long) != WOULD_BLOCK {
            DEFERRED.set(true);
        }
        while pass(&ours, &[0; SHORT_PACKET_MAX]) > 0 {}
        assert_eq!(
            QUEUE.with_borrow(Vec::len) / SHORT_PACKET_MAX,
            QUEUE_MAX / SHORT_PACKET_MAX
        );
        drop(theirs);
        // A child of another test may hold the other end until it calls exec(2).
        let until = Instant::now() + Duration::from_secs(60);
        while send_queue(ours.as_raw_fd()).is_ok() {
            assert!(Instant::now() < until, "the peer is gone");
            std::thread::yield_now();
        }
        DRAINED.set(true);
        let size = pass(&ours, &long);
        assert!(size < 0 && size != WOULD_BLOCK, "{size}");
    }
}
