//! Tells systemd, or another service manager that sets `NOTIFY_SOCKET`, when the service is ready and when it stops.
//!
//! The protocol is one datagram for each message (`man sd_notify`). Without the variable nothing happens, and a message that cannot
//! be sent is no reason not to serve: a unit of `Type=notify` then fails to start, and says so itself.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use crate::config::read_env_var;

/// The service listens, and its database and its keys can be used.
pub(super) fn notify_ready() {
    notify("READY=1");
}

/// The service ends in order.
pub(super) fn notify_stopping() {
    notify("STOPPING=1");
}

fn notify(message: &str) {
    let Some(socket) = read_env_var("NOTIFY_SOCKET").filter(|socket| !socket.is_empty()) else {
        return;
    };
    if let Err(cause) = send_datagram(&socket, message) {
        tracing::warn!(message, %cause, "service_manager_not_notified");
    }
}

fn send_datagram(socket: &OsStr, message: &str) -> io::Result<()> {
    let address = match socket.as_bytes().strip_prefix(b"@") {
        Some(name) => abstract_address(name)?,
        None => SocketAddr::from_pathname(socket)?,
    };
    let datagram = UnixDatagram::unbound()?;
    datagram.send_to_addr(message.as_bytes(), &address)?;
    Ok(())
}

/// A socket whose name is in no file system.
#[cfg(target_os = "linux")]
fn abstract_address(name: &[u8]) -> io::Result<SocketAddr> {
    use std::os::linux::net::SocketAddrExt as _;

    SocketAddr::from_abstract_name(name)
}

#[cfg(not(target_os = "linux"))]
fn abstract_address(_: &[u8]) -> io::Result<SocketAddr> {
    Err(io::ErrorKind::Unsupported.into())
}
