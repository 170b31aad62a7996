//! What the `ssh2` crate lacks for authentication: a signature made by a callback (for an agent: libssh2's own agent
//! client would wait for ever for a reply), and the list of methods as bytes, which need not be UTF-8.

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};

use libssh2_sys as raw;
use nix::libc;
use ssh2::{Error, Session};

/// Signs the given data, or returns an error code of libssh2.
pub type Sign<'a> = &'a mut dyn FnMut(&[u8]) -> Result<Vec<u8>, c_int>;

type SignCallback = extern "C" fn(
    *mut raw::LIBSSH2_SESSION,
    *mut *mut u8,
    *mut usize,
    *const u8,
    usize,
    *mut *mut c_void,
) -> c_int;

unsafe extern "C" {
    /// Exported by libssh2 but not declared by libssh2-sys.
    fn libssh2_userauth_publickey(
        session: *mut raw::LIBSSH2_SESSION,
        user: *const c_char,
        key: *const u8,
        key_length: usize,
        sign: SignCallback,
        context: *mut *mut c_void,
    ) -> c_int;
}

/// Authenticates with the public key `blob`. `sign` makes the signature if the server accepts the key.
pub fn public_key(
    session: &Session,
    user: &str,
    blob: &[u8],
    mut sign: Sign<'_>,
) -> Result<(), Error> {
    let user = CString::new(user)?;
    let mut locked = session.raw();
    // SAFETY: the session is live and locked, and everything that the pointers refer to outlives the call: the library
    // keeps none of them. The context has the type that `sign_with` expects.
    let code = unsafe {
        libssh2_userauth_publickey(
            &raw mut *locked,
            user.as_ptr(),
            blob.as_ptr(),
            blob.len(),
            sign_with,
            (&raw mut sign).cast(),
        )
    };
    match code {
        0 => Ok(()),
        code => Err(Error::from_session_error_raw(&raw mut *locked, code)),
    }
}

extern "C" fn sign_with(
    _session: *mut raw::LIBSSH2_SESSION,
    signature: *mut *mut u8,
    length: *mut usize,
    data: *const u8,
    data_length: usize,
    context: *mut *mut c_void,
) -> c_int {
    // SAFETY: the library passes the context from `public_key` and its own data, and valid pointers for both results.
    // It frees the signature with free(3), as sessions of the ssh2 crate use the default allocator.
    unsafe {
        let sign = &mut *context.cast::<Sign<'_>>();
        match sign(std::slice::from_raw_parts(data, data_length)) {
            Err(code) => code,
            Ok(made) => {
                let copy = libc::malloc(made.len().max(1)).cast::<u8>();
                if copy.is_null() {
                    return raw::LIBSSH2_ERROR_ALLOC;
                }
                std::ptr::copy_nonoverlapping(made.as_ptr(), copy, made.len());
                *signature = copy;
                *length = made.len();
                0
            }
        }
    }
}

/// The authentication methods that the server accepts, separated by commas (a `none` request, RFC 4252 5.2). Empty if
/// the `none` request itself completed the login.
pub fn methods(session: &Session, user: &str) -> Result<Vec<u8>, Error> {
    let mut locked = session.raw();
    let length = c_uint::try_from(user.len()).unwrap_or_default();
    // SAFETY: the session is live and locked, and the user is readable for its whole length. The list belongs to the
    // session and is copied before the session is used again.
    unsafe {
        let list = raw::libssh2_userauth_list(&raw mut *locked, user.as_ptr().cast(), length);
        if !list.is_null() {
            return Ok(CStr::from_ptr(list).to_bytes().to_vec());
        }
    }
    Error::last_session_error_raw(&raw mut *locked).map_or(Ok(Vec::new()), Err)
}
