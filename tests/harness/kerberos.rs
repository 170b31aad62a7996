//! A Kerberos realm on loopback: Debian's krb5-kdc with a database of its own.

use std::net::{TcpStream, UdpSocket};
use std::path::PathBuf;

use super::claim::{Claim, claim};
use super::programs::tool;
use super::running::{Invocation, Running};
use super::scratch::Scratch;
use super::{STEP_TIMEOUT, poll_until};

const REALM: &str = "RSIG.TEST";
const PORTS: std::ops::Range<u16> = 18_000..20_000;

/// Stopped on drop.
pub struct Realm {
    scratch: Scratch,
    kdc: Option<Running>,
    _port: Claim,
}

impl Realm {
    /// Starts a realm that knows the service of the SSH server on 127.0.0.1.
    #[track_caller]
    pub fn start() -> Self {
        let scratch = Scratch::new();
        let port = claim("kdc", PORTS, |port| {
            UdpSocket::bind(("127.0.0.1", port)).is_ok()
        });
        let (dir, number) = (scratch.path().display().to_string(), port.number());
        let client = format!(
            "[libdefaults]\ndefault_realm = {REALM}\ndns_lookup_kdc = false\ndns_lookup_realm = false\nrdns = false\n\
             dns_canonicalize_hostname = false\ndefault_keytab_name = FILE:{dir}/keytab\n\
             [realms]\n{REALM} = {{\n kdc = 127.0.0.1:{number}\n}}\n[domain_realm]\n127.0.0.1 = {REALM}\n"
        );
        let kdc = format!(
            "[kdcdefaults]\nkdc_listen = 127.0.0.1:{number}\nkdc_tcp_listen = 127.0.0.1:{number}\n\
             [realms]\n{REALM} = {{\n database_name = {dir}/principal\n key_stash_file = {dir}/stash\n}}\n\
             [logging]\nkdc = FILE:{dir}/log\n"
        );
        scratch.file("krb5.conf", &client, 0o644);
        scratch.file("kdc.conf", &kdc, 0o644);
        let mut realm = Self {
            scratch,
            kdc: None,
            _port: port,
        };
        let create = ["create", "-s", "-P", "master", "-r", REALM];
        realm.within(tool("kdb5_util").args(create)).run().ok();
        realm.administer("addprinc -randkey host/127.0.0.1");
        realm.administer(&format!("ktadd -k {dir}/keytab host/127.0.0.1"));
        realm.kdc = Some(realm.within(tool("krb5kdc").arg("-n")).start());
        poll_until("the KDC listens", STEP_TIMEOUT, || {
            TcpStream::connect(("127.0.0.1", number)).is_ok()
        });
        realm
    }

    #[track_caller]
    fn administer(&self, query: &str) {
        self.within(tool("kadmin.local").args(["-q", query]))
            .run()
            .ok();
    }

    /// Gets a ticket for a user.
    #[track_caller]
    pub fn log_in(&self, user: &str) {
        self.administer(&format!("addprinc -pw sesame {user}"));
        self.within(tool("kinit").arg(user).stdin("sesame\n"))
            .run()
            .ok();
    }

    /// Variables that make programs use this realm and its tickets.
    pub fn environment(&self) -> [(&'static str, PathBuf); 3] {
        let file = |name: &str| self.scratch.path().join(name);
        [
            ("KRB5_CONFIG", file("krb5.conf")),
            ("KRB5_KDC_PROFILE", file("kdc.conf")),
            ("KRB5CCNAME", file("tickets")),
        ]
    }

    pub fn within(&self, invocation: Invocation) -> Invocation {
        let environment = self.environment();
        environment
            .into_iter()
            .fold(invocation, |invocation, (name, value)| {
                invocation.env(name, value)
            })
    }
}
