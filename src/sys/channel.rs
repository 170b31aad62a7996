//! A non-blocking session channel of libssh2 that can send signals.
//!
//! The `ssh2` crate can't send the `signal` request of RFC 4254 6.9, and its channels must not be dropped on a
//! non-blocking session. Callers must follow two rules of libssh2: only one `open` at a time on a session, and a call
//! that would block while [`Channel::has_partial_packet`] is true must be repeated before any other call.

use std::ffi::{c_char, c_int, c_uint, c_ulong};
use std::io;

use libssh2_sys as raw;
use ssh2::Session;

use super::memory;

unsafe extern "C" {
    /// Exported by libssh2 but not declared by libssh2-sys.
    fn libssh2_channel_signal_ex(
        channel: *mut raw::LIBSSH2_CHANNEL,
        name: *const c_char,
        length: usize,
    ) -> c_int;
}

/// The stream of a channel that carries standard error (RFC 4254 5.2).
const STANDARD_ERROR: c_int = 1;
/// Returned by `libssh2_channel_process_startup` now and then when it should report that it would block.
const NO_REPLY_YET: c_int = -1;
/// The largest packet that we accept, in bytes: the value that the `ssh2` crate uses.
const PACKET_MAX: c_uint = 32_768;

/// A session channel. It is freed with its session, or by [`Channel::free`].
pub struct Channel {
    session: Session,
    channel: *mut raw::LIBSSH2_CHANNEL,
}

// SAFETY: a libssh2 channel is not tied to a thread, and is only used under the session's lock.
unsafe impl Send for Channel {}

/// An error of libssh2, displayed without its code.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
struct ChannelError {
    code: c_int,
    message: String,
}

/// Whether an error concerns one channel only, so that the connection can still be used.
pub fn is_channel_error(error: &io::Error) -> bool {
    let error = error.get_ref().and_then(|error| error.downcast_ref());
    matches!(
        error.map(|error: &ChannelError| error.code),
        Some(
            raw::LIBSSH2_ERROR_CHANNEL_OUTOFORDER
                | raw::LIBSSH2_ERROR_CHANNEL_FAILURE
                | raw::LIBSSH2_ERROR_CHANNEL_REQUEST_DENIED
                | raw::LIBSSH2_ERROR_CHANNEL_UNKNOWN
                | raw::LIBSSH2_ERROR_CHANNEL_WINDOW_EXCEEDED
                | raw::LIBSSH2_ERROR_CHANNEL_PACKET_EXCEEDED
                | raw::LIBSSH2_ERROR_CHANNEL_CLOSED
                | raw::LIBSSH2_ERROR_CHANNEL_EOF_SENT
        )
    )
}

/// The result of a call that returns a size or a negative error code.
fn checked(session: &mut raw::LIBSSH2_SESSION, code: isize) -> io::Result<usize> {
    usize::try_from(code).map_err(|_| {
        let code = c_int::try_from(code).unwrap_or(c_int::MIN);
        if code == raw::LIBSSH2_ERROR_EAGAIN {
            io::ErrorKind::WouldBlock.into()
        } else {
            let message = match code {
                raw::LIBSSH2_ERROR_SOCKET_RECV
                | raw::LIBSSH2_ERROR_SOCKET_SEND
                | raw::LIBSSH2_ERROR_SOCKET_DISCONNECT => "the server closed the connection".into(),
                // The library keeps every packet that no call asks for, and a keeper's memory is limited.
                raw::LIBSSH2_ERROR_ALLOC => {
                    memory::release_reserve();
                    "the server sent far more than was asked for".into()
                }
                _ => {
                    let error = ssh2::Error::from_session_error_raw(session, code);
                    error.message().to_owned()
                }
            };
            io::Error::other(ChannelError { code, message })
        }
    })
}

impl Channel {
    /// Opens a channel whose receive window is `window` bytes.
    pub fn open(session: &Session, window: u32) -> io::Result<Self> {
        let mut locked = session.raw();
        // SAFETY: the session is live and locked, and the name is a C string of 7 characters.
        let channel = unsafe {
            raw::libssh2_channel_open_ex(
                &raw mut *locked,
                c"session".as_ptr(),
                7,
                window,
                PACKET_MAX,
                std::ptr::null(),
                0,
            )
        };
        if channel.is_null() {
            // SAFETY: as above.
            let code = unsafe { raw::libssh2_session_last_errno(&raw mut *locked) };
            checked(&mut locked, if code < 0 { code as isize } else { -1 })?;
        }
        drop(locked);
        Ok(Self {
            session: session.clone(),
            channel,
        })
    }

    /// Whether a call that would block has sent only part of a packet.
    pub fn has_partial_packet(session: &Session) -> bool {
        matches!(
            session.block_directions(),
            ssh2::BlockDirections::Outbound | ssh2::BlockDirections::Both
        )
    }

    /// Sets an environment variable of the command that will be run (RFC 4254 6.4). Success does not mean that the
    /// server accepts the variable.
    pub fn set_env(&mut self, name: &[u8], value: &[u8]) -> io::Result<()> {
        let length = |text: &[u8]| c_uint::try_from(text.len()).map_err(io::Error::other);
        let (name_length, value_length) = (length(name)?, length(value)?);
        let mut session = self.session.raw();
        // SAFETY: as for exec.
        let code = unsafe {
            raw::libssh2_channel_setenv_ex(
                self.channel,
                name.as_ptr().cast(),
                name_length,
                value.as_ptr().cast(),
                value_length,
            )
        };
        if code == raw::LIBSSH2_ERROR_CHANNEL_REQUEST_DENIED || code == NO_REPLY_YET {
            return Ok(());
        }
        checked(&mut session, code as isize).map(drop)
    }

    /// Requests that `command` be run (RFC 4254 6.5).
    pub fn exec(&mut self, command: &str) -> io::Result<()> {
        let length = c_uint::try_from(command.len()).map_err(io::Error::other)?;
        let mut session = self.session.raw();
        // SAFETY: the channel lives as long as its session, the session is locked, and both texts outlive the call.
        let code = unsafe {
            raw::libssh2_channel_process_startup(
                self.channel,
                c"exec".as_ptr(),
                4,
                command.as_ptr().cast(),
                length,
            )
        };
        // -1 is no specific error: the library read packets, and none of them was the reply. The reply still arrives,
        // and what follows shows whether the shell was started.
        if code == NO_REPLY_YET {
            return Ok(());
        }
        checked(&mut session, code as isize).map(drop)
    }

    /// Reads standard output or standard error. 0 means the end of the stream, but only if [`Channel::at_end`] is true.
    pub fn read(&mut self, error_stream: bool, buffer: &mut [u8]) -> io::Result<usize> {
        let stream = if error_stream { STANDARD_ERROR } else { 0 };
        let mut session = self.session.raw();
        // SAFETY: as for exec; the buffer is writable for its whole length.
        let code = unsafe {
            raw::libssh2_channel_read_ex(
                self.channel,
                stream,
                buffer.as_mut_ptr().cast(),
                buffer.len(),
            )
        };
        checked(&mut session, code)
    }

    /// Writes to standard input. Returns how many bytes were taken.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut session = self.session.raw();
        // SAFETY: as for exec; the bytes are readable for their whole length.
        let code = unsafe {
            raw::libssh2_channel_write_ex(self.channel, 0, bytes.as_ptr().cast(), bytes.len())
        };
        checked(&mut session, code)
    }

    /// Sends the `signal` request. Success only means that the packet was queued: no server replies to it.
    #[allow(dead_code)]
    pub fn signal(&mut self, name: &str) -> io::Result<()> {
        let mut session = self.session.raw();
        // SAFETY: as for exec; the name is readable for its whole length.
        let code =
            unsafe { libssh2_channel_signal_ex(self.channel, name.as_ptr().cast(), name.len()) };
        checked(&mut session, code as isize).map(drop)
    }

    /// Closes the standard input of the remote command.
    pub fn send_eof(&mut self) -> io::Result<()> {
        let mut session = self.session.raw();
        // SAFETY: as for exec.
        let code = unsafe { raw::libssh2_channel_send_eof(self.channel) };
        checked(&mut session, code as isize).map(drop)
    }

    /// Whether the server has sent its end of file and everything before it was read.
    pub fn at_end(&self) -> bool {
        let _session = self.session.raw();
        // SAFETY: as for exec.
        unsafe { raw::libssh2_channel_eof(self.channel) != 0 }
    }

    /// Whether received bytes of either stream can be read. Any call on the session receives data for all streams and
    /// channels, so a caller that polls the socket must check this after its last call: otherwise it waits for data
    /// that has already arrived.
    pub fn has_bytes(&self) -> bool {
        let _session = self.session.raw();
        let mut available: c_ulong = 0;
        // SAFETY: as for exec; `available` is written before the call returns, and the other result is not requested.
        unsafe {
            raw::libssh2_channel_window_read_ex(
                self.channel,
                &raw mut available,
                std::ptr::null_mut(),
            )
        };
        available > 0
    }

    /// Receives data for all channels, and continues a key exchange. Other calls may not get that far: each sends its
    /// own packet first, which is impossible while a packet of the key exchange is half sent. For the same reason,
    /// other calls may not report a broken connection.
    pub fn receive_all(&self) -> io::Result<()> {
        let mut session = self.session.raw();
        // SAFETY: as for exec.
        let code = unsafe { raw::libssh2_channel_wait_eof(self.channel) };
        match checked(&mut session, code as isize) {
            Err(error)
                if error.kind() != io::ErrorKind::WouldBlock && !is_channel_error(&error) =>
            {
                Err(error)
            }
            _ => Ok(()),
        }
    }

    /// Closes the channel and frees its memory. To be called only at the end of file: closing earlier sometimes broke
    /// Dropbear's whole connection.
    pub fn free(&mut self) -> io::Result<()> {
        if self.channel.is_null() {
            return Ok(());
        }
        let mut session = self.session.raw();
        // SAFETY: as for exec; the pointer is cleared as soon as the library has freed the channel.
        let code = unsafe { raw::libssh2_channel_free(self.channel) };
        checked(&mut session, code as isize)?;
        self.channel = std::ptr::null_mut();
        Ok(())
    }
}
