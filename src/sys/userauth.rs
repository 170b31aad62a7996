//! What the `ssh2` crate lacks for authentication: a signature made by somebody else (an agent, of
//! whose answers libssh2's own client would wait for ever), and a list of methods that need not be UTF-8.

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};

use libssh2_sys as raw;
use nix::libc;
use ssh2::{Error, Session};

/// Signs the data that it is given, or gives an error code of libssh2.
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
    /// In the library, and not declared by libssh2-sys.
    fn libssh2_userauth_publickey(
        session: *mut raw::LIBSSH2_SESSION,
        user: *const c_char,
        key: *const u8,
        key_length: usize,
        sign: SignCallback,
        context: *mut *mut c_void,
    ) -> c_int;
}

/// Authenticates with the public key `blob`, and has `sign` make the signature if the server takes it.
pub fn public_key(
    session: &Session,
    user: &str,
    blob: &[u8],
    mut sign: Sign<'_>,
) -> Result<(), Error> {
    let user = CString::new(user)?;
    let mut locked = session.raw();
    // SAFETY: the session is live and locked, and all that the pointers show outlives the call: the library keeps
    // none of them. The context is what `sign_with` takes it for.
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
    // SAFETY: the library hands on the context of `public_key` and its own data, and gives places for both results.
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

/// The methods that the server takes, separated by commas (a `none` request, RFC 4252 5.2). Empty where
/// that was enough to be let in.
pub fn methods(session: &Session, user: &str) -> Result<Vec<u8>, Error> {
    let mut locked = session.raw();
    let length = c_uint::try_from(user.len()).unwrap_or_default();
    // SAFETY: the session is live and locked, and the user is readable for its whole length. The list belongs to the
    // session and is copied before anything else is asked of it.
    unsafe {
        let list = raw::libssh2_userauth_list(&raw mut *locked, user.as_ptr().cast(), length);
        if !list.is_null() {
            return Ok(CStr::from_ptr(list).to_bytes().to_vec());
        }
    }
    Error::last_session_error_raw(&raw mut *locked).map_or(Ok(Vec::new()), Err)
}
